// Package trust says who belongs to a cluster: its certificate authority, the
// certificates of servers and nodes, the tokens that let a machine join, and
// the seal on what nodes keep for the server.
//
// Everything derives from one secret, so whoever has that is the same
// authority. The package decides nothing that must be remembered: which key a
// node's name belongs to, and how often a token was used, is the loop's to
// record. DESIGN.md says more.
package trust

import (
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"sync"
	"time"

	"golang.org/x/crypto/chacha20poly1305"
)

const (
	// ServerName is the name that every server's certificate is for, whatever the
	// address under which it is reached.
	ServerName = "server.tallyman.internal"

	nodeLifetime   = 90 * 24 * time.Hour
	serverLifetime = 30 * 24 * time.Hour
	// skew is how far behind a machine's clock may be.
	skew = time.Hour
	// keySize of every derived key, in bytes.
	keySize = 32
)

// The authority's certificate is the same at any time, RFC 5280's 4.1.2.5 has
// the end for what has none.
var (
	caBegin = time.Date(2020, time.January, 1, 0, 0, 0, 0, time.UTC)
	caEnd   = time.Date(9999, time.December, 31, 23, 59, 59, 0, time.UTC)
)

// Hash names an authority: the SHA-256 of its public key.
type Hash [sha256.Size]byte

// Short is the beginning, for people.
func (h Hash) Short() string { return hex.EncodeToString(h[:4]) }

// Authority is the cluster's. Safe for concurrent use.
type Authority struct {
	key         ed25519.PrivateKey
	certificate *x509.Certificate
	pool        *x509.CertPool
	// tokens keys the MACs of tokens, names those of the ledger's keys.
	tokens, names []byte
	ledger        cipher.AEAD
	now           func() time.Time
}

// New derives the authority from a secret of at least 32 bytes. now is the wall
// clock.
func New(secret []byte, now func() time.Time) (*Authority, error) {
	if len(secret) < keySize {
		return nil, fmt.Errorf("trust: the secret must have %d bytes", keySize)
	}
	if now == nil {
		return nil, errors.New("trust: no clock")
	}
	seed, err1 := derive(secret, "authority")
	tokens, err2 := derive(secret, "join tokens")
	names, err3 := derive(secret, "ledger names")
	content, err4 := derive(secret, "ledger")
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return nil, fmt.Errorf("derive the authority's keys: %w", err)
	}
	ledger, err := chacha20poly1305.NewX(content)
	if err != nil {
		return nil, fmt.Errorf("derive the authority's keys: %w", err)
	}
	a := &Authority{key: ed25519.NewKeyFromSeed(seed), pool: x509.NewCertPool(), tokens: tokens, names: names, ledger: ledger, now: now}
	if a.certificate, err = selfSigned(a.key); err != nil {
		return nil, err
	}
	a.pool.AddCert(a.certificate)
	return a, nil
}

func derive(secret []byte, purpose string) ([]byte, error) {
	return hkdf.Key(sha256.New, secret, nil, "tallyman trust "+purpose, keySize)
}

// selfSigned is the authority's certificate, a function of its key.
func selfSigned(key ed25519.PrivateKey) (*x509.Certificate, error) {
	public := key.Public()
	hash, err := hashOf(public)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{Organization: []string{"Tallyman"}, CommonName: "cluster " + hash.Short()},
		NotBefore: caBegin, NotAfter: caEnd, SubjectKeyId: hash[:20],
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	return sign(template, template, public, key)
}

func sign(template, parent *x509.Certificate, public any, key ed25519.PrivateKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, fmt.Errorf("sign the certificate of %s: %w", template.Subject.CommonName, err)
	}
	return x509.ParseCertificate(der)
}

func hashOf(public any) (Hash, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return Hash{}, fmt.Errorf("hash a public key: %w", err)
	}
	return sha256.Sum256(der), nil
}

// Hash is the authority's.
func (a *Authority) Hash() Hash { return sha256.Sum256(a.certificate.RawSubjectPublicKeyInfo) }

// ServerTLS is what a server listens with. Its certificate is made when first
// asked for and again when a third of its time is over. Clients are asked for a
// certificate, which Identify judges.
func (a *Authority) ServerTLS() *tls.Config {
	s := &serverCertificate{authority: a}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, SessionTicketsDisabled: true,
		// Small records first would show a page sooner; a node waits for the whole message.
		DynamicRecordSizingDisabled: true,
		ClientAuth:                  tls.RequestClientCert,
		GetCertificate:              func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.get() },
	}
}

// serverCertificate makes a server's certificates.
type serverCertificate struct {
	authority *Authority

	mu sync.Mutex
	// guarded by mu
	current *tls.Certificate
}

func (s *serverCertificate) get() (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.authority.now()
	if s.current != nil && now.Before(renewAt(s.current.Leaf)) {
		return s.current, nil
	}
	made, err := s.authority.serverCertificate(now)
	if err == nil {
		s.current = made
	}
	return made, err
}

func (a *Authority) serverCertificate(now time.Time) (*tls.Certificate, error) {
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the server's key: %w", err)
	}
	leaf, err := sign(&x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{Organization: []string{"Tallyman"}, CommonName: ServerName}, DNSNames: []string{ServerName},
		NotBefore: now.Add(-skew), NotAfter: now.Add(serverLifetime),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, a.certificate, public, a.key)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{leaf.Raw, a.certificate.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

// renewAt is when a third of a certificate's time is over.
func renewAt(c *x509.Certificate) time.Time {
	return c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 3)
}

// serial is a random number of 127 bits, as RFC 5280 wants it: positive and
// never used twice.
func serial() *big.Int {
	var b [16]byte
	rand.Read(b[:])
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b[:])
}
