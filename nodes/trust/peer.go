package trust

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
)

// PeerProtocol is what the servers of a cluster speak to each other, by ALPN, at
// the door that agents come in at. What it carries is HTTP/1.1.
const PeerProtocol = "tallyman-peer"

// PeerTLS is what a server dials another one of its cluster with.
func (a *Authority) PeerTLS() *tls.Config {
	s := &serverCertificate{authority: a}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{PeerProtocol}, ServerName: ServerName, RootCAs: a.pool,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return s.get() },
	}
}

// CheckServer says why the certificate of a connection is not that of one of the
// cluster's servers; nil when it is.
func (a *Authority) CheckServer(chain []*x509.Certificate) error {
	if len(chain) == 0 {
		return errors.New("no certificate was shown")
	}
	// A node has none for this name, and none that is good for a server.
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: a.pool, CurrentTime: a.now(), DNSName: ServerName, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return fmt.Errorf("the certificate is not that of a server of this cluster (%s): %w", a.Hash().Short(), err)
	}
	return nil
}
