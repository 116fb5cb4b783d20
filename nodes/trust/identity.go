package trust

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"
)

// nodeUnit tells certificates of nodes from others.
const nodeUnit = "nodes"

// Identity is whom a node's certificate is for.
type Identity struct {
	Node string
	// Key is the SHA-256 of the node's public key, in hexadecimal.
	Key string
	// Expires is the end of the certificate.
	Expires time.Time
}

// CheckName says what is wrong with a node's name; nil when it is a DNS
// subdomain, as Kubernetes wants it.
func CheckName(name string) error {
	if problems := validation.IsDNS1123Subdomain(name); len(problems) > 0 {
		return fmt.Errorf("%q cannot be a node's name: %s", name, problems[0])
	}
	return nil
}

// ReadRequest returns whom a PKCS #10 request is of, once it proves that the
// asking machine has the key.
func ReadRequest(node string, request []byte) (Identity, error) {
	if err := CheckName(node); err != nil {
		return Identity{}, err
	}
	r, err := parseRequest(request)
	if err != nil {
		return Identity{}, err
	}
	return Identity{Node: node, Key: fingerprint(r.RawSubjectPublicKeyInfo)}, nil
}

func parseRequest(request []byte) (*x509.CertificateRequest, error) {
	r, err := x509.ParseCertificateRequest(request)
	if err != nil {
		return nil, fmt.Errorf("the request for a certificate can't be read: %w", err)
	}
	switch r.PublicKey.(type) {
	case ed25519.PublicKey, *ecdsa.PublicKey:
	default:
		return nil, fmt.Errorf("the request is for a key of kind %s: want Ed25519 or ECDSA", r.PublicKeyAlgorithm)
	}
	if err := r.CheckSignature(); err != nil {
		return nil, fmt.Errorf("the request is not signed with its own key: %w", err)
	}
	return r, nil
}

// Certify makes a node's certificate for the key of a request. It returns the
// chain, the node's own first. Whether the node may have it is the caller's to know.
func (a *Authority) Certify(node string, request []byte) ([][]byte, error) {
	if err := CheckName(node); err != nil {
		return nil, err
	}
	r, err := parseRequest(request)
	if err != nil {
		return nil, err
	}
	now := a.now()
	leaf, err := sign(&x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{Organization: []string{"Tallyman"}, OrganizationalUnit: []string{nodeUnit}, CommonName: node},
		NotBefore: now.Add(-skew), NotAfter: now.Add(nodeLifetime),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, a.certificate, r.PublicKey, a.key)
	if err != nil {
		return nil, err
	}
	return [][]byte{leaf.Raw, a.certificate.Raw}, nil
}

// ErrNoCertificate is returned for a connection that shows none.
var ErrNoCertificate = errors.New("no certificate was shown: join the cluster with a token first (tally token create, on the server)")

// Identify returns whom the certificate of a connection is for. The error is
// one sentence for both sides.
func (a *Authority) Identify(chain []*x509.Certificate) (Identity, error) {
	if len(chain) == 0 {
		return Identity{}, ErrNoCertificate
	}
	leaf, now := chain[0], a.now()
	_, err := leaf.Verify(x509.VerifyOptions{Roots: a.pool, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	invalid := x509.CertificateInvalidError{}
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && now.Before(leaf.NotBefore):
		return Identity{}, fmt.Errorf("the certificate of node %s is good from %s only: set the clocks right", leaf.Subject.CommonName, leaf.NotBefore.Format(time.RFC3339))
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return Identity{}, fmt.Errorf("the certificate of node %s expired on %s: join again with a token (tally token create, on the server)",
			leaf.Subject.CommonName, leaf.NotAfter.Format(time.DateOnly))
	case errors.As(err, &x509.UnknownAuthorityError{}):
		return Identity{}, fmt.Errorf("the certificate is not of this cluster (%s): the machine belongs to another one, or to one with another key", a.Hash().Short())
	case err != nil:
		return Identity{}, fmt.Errorf("the certificate is not good for a node: %w", err)
	case len(leaf.Subject.OrganizationalUnit) != 1 || leaf.Subject.OrganizationalUnit[0] != nodeUnit:
		return Identity{}, errors.New("the certificate is not a node's")
	}
	return Identity{Node: leaf.Subject.CommonName, Key: fingerprint(leaf.RawSubjectPublicKeyInfo), Expires: leaf.NotAfter}, nil
}

// Knows tells that a connection's certificate is one of the cluster's nodes'.
func (a *Authority) Knows(chain []*x509.Certificate) bool {
	_, err := a.Identify(chain)
	return err == nil
}

func fingerprint(publicKeyInfo []byte) string {
	sum := sha256.Sum256(publicKeyInfo)
	return hex.EncodeToString(sum[:])
}
