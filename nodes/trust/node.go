package trust

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	keyFile         = "key.pem"
	certificateFile = "certificate.pem"
	keyBlock        = "PRIVATE KEY"
	certBlock       = "CERTIFICATE"
)

// Node is a node's key and certificate, kept in a directory. Safe for
// concurrent use.
type Node struct {
	dir string
	key ed25519.PrivateKey

	mu sync.Mutex
	// guarded by mu; the node's own first, the authority's last, empty before it joined.
	chain []*x509.Certificate
}

// OpenNode reads what a directory keeps; the key is made where there is none.
func OpenNode(dir string) (*Node, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("keep the node's certificate: %w", err)
	}
	n := &Node{dir: dir}
	if err := n.readKey(); err != nil {
		return nil, err
	}
	return n, n.readChain() // which is held to the key
}

func (n *Node) readKey() error {
	path := filepath.Join(n.dir, keyFile)
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return n.makeKey(path)
	}
	if err != nil {
		return fmt.Errorf("read the node's key: %w", err)
	}
	block, _ := pem.Decode(content)
	if block == nil {
		return fmt.Errorf("%s is no key: remove it and join again with a token", path)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	var ok bool
	if n.key, ok = key.(ed25519.PrivateKey); err != nil || !ok {
		return fmt.Errorf("%s is no Ed25519 key: remove it and join again with a token", path)
	}
	return nil
}

func (n *Node) makeKey(path string) (err error) {
	if _, n.key, err = ed25519.GenerateKey(rand.Reader); err != nil {
		return fmt.Errorf("make the node's key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(n.key)
	if err != nil {
		return fmt.Errorf("make the node's key: %w", err)
	}
	return WriteSecret(path, pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: der}))
}

func (n *Node) readChain() error {
	path := filepath.Join(n.dir, certificateFile)
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the node's certificate: %w", err)
	}
	var chain [][]byte
	for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
		chain = append(chain, block.Bytes)
	}
	if n.chain, err = n.check(chain); err != nil {
		return fmt.Errorf("%s: %w: remove it and join again with a token", path, err)
	}
	return nil
}

// check parses a chain and holds it to the node's key.
func (n *Node) check(chain [][]byte) ([]*x509.Certificate, error) {
	if len(chain) < 2 {
		return nil, errors.New("not a node's certificate with its authority's")
	}
	var parsed []*x509.Certificate
	for _, der := range chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("not a certificate: %w", err)
		}
		parsed = append(parsed, c)
	}
	if public, ok := parsed[0].PublicKey.(ed25519.PublicKey); !ok || !public.Equal(n.key.Public()) {
		return nil, errors.New("the certificate is for another key")
	}
	if err := parsed[0].CheckSignatureFrom(parsed[len(parsed)-1]); err != nil {
		return nil, fmt.Errorf("the certificate is not its authority's: %w", err)
	}
	return parsed, nil
}

// Request asks for a certificate, in the form of PKCS #10.
func (n *Node) Request(name string) ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, crypto.Signer(n.key))
}

// Keep stores a chain that a server gave; the authority may not be another one
// than authority, when that is not zero, or than the one that is kept.
func (n *Node) Keep(chain [][]byte, authority Hash) error {
	parsed, err := n.check(chain)
	if err != nil {
		return fmt.Errorf("the server's answer: %w", err)
	}
	if kept, joined := n.Authority(); authority == (Hash{}) && joined {
		authority = kept
	}
	if authority != hashOfCertificate(parsed[len(parsed)-1]) {
		return errors.New("the server's answer: the certificate is of another cluster")
	}
	var content bytes.Buffer
	for _, c := range parsed {
		if err := pem.Encode(&content, &pem.Block{Type: certBlock, Bytes: c.Raw}); err != nil {
			return fmt.Errorf("keep the node's certificate: %w", err)
		}
	}
	if err := WriteSecret(filepath.Join(n.dir, certificateFile), content.Bytes()); err != nil {
		return fmt.Errorf("keep the node's certificate: %w", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.chain = parsed
	return nil
}

func hashOfCertificate(c *x509.Certificate) Hash { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }

func (n *Node) kept() []*x509.Certificate {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.chain
}

// Authority is the hash of the cluster's; ok is false before the node joined.
func (n *Node) Authority() (hash Hash, ok bool) {
	chain := n.kept()
	if len(chain) == 0 {
		return Hash{}, false
	}
	return hashOfCertificate(chain[len(chain)-1]), true
}

// Name is the one that the certificate is for, Expires its end and RenewAt when
// to ask for the next; all zero before the node joined.
func (n *Node) Name() string {
	if chain := n.kept(); len(chain) > 0 {
		return chain[0].Subject.CommonName
	}
	return ""
}

// Expires: see Name.
func (n *Node) Expires() time.Time {
	if chain := n.kept(); len(chain) > 0 {
		return chain[0].NotAfter
	}
	return time.Time{}
}

// RenewAt: see Name.
func (n *Node) RenewAt() time.Time {
	if chain := n.kept(); len(chain) > 0 {
		return renewAt(chain[0])
	}
	return time.Time{}
}

// TLS is what the node dials its servers with, always with the newest certificate.
func (n *Node) TLS() (*tls.Config, error) {
	chain := n.kept()
	if len(chain) == 0 {
		return nil, errors.New("this node has no certificate: join with a token")
	}
	roots := x509.NewCertPool()
	roots.AddCert(chain[len(chain)-1])
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, ServerName: ServerName, RootCAs: roots,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			c := &tls.Certificate{PrivateKey: n.key}
			for _, link := range n.kept() {
				c.Certificate = append(c.Certificate, link.Raw)
			}
			return c, nil
		},
	}, nil
}

// OtherClusterError is returned when a server is not the one that a token is for.
type OtherClusterError struct{ Want, Have Hash }

func (e *OtherClusterError) Error() string {
	if e.Have == (Hash{}) {
		return fmt.Sprintf("the server can't show a certificate of the cluster that the token is for (%s): is the address right?", e.Want.Short())
	}
	return fmt.Sprintf("the server is of cluster %s, the token is for %s: is the address right, and the token of this cluster?", e.Have.Short(), e.Want.Short())
}

// JoinTLS is what a node dials with that has no certificate yet, but a token: any
// address will do, if the server's certificate is of that authority.
func JoinTLS(authority Hash) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, ServerName: ServerName,
		// The chain is verified below, against the hash instead of known roots.
		InsecureSkipVerify: true,
		VerifyConnection:   func(s tls.ConnectionState) error { return verifyPinned(s.PeerCertificates, authority) },
	}
}

func verifyPinned(chain []*x509.Certificate, authority Hash) error {
	other := &OtherClusterError{Want: authority}
	for i, c := range chain {
		if i == 0 || !c.IsCA {
			continue
		}
		if other.Have = hashOfCertificate(c); other.Have != authority {
			continue
		}
		roots := x509.NewCertPool()
		roots.AddCert(c)
		if _, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, DNSName: ServerName}); err != nil {
			return fmt.Errorf("the server's certificate: %w", err)
		}
		return nil
	}
	return other
}

// WriteSecret writes a file that only its owner reads so that, whatever happens,
// it is there whole or as it was.
func WriteSecret(path string, content []byte) error {
	temporary := path + ".new"
	file, err := os.OpenFile(temporary, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
