// Package token signs the tokens that ServiceAccounts of pods show to others,
// and publishes what those need to verify them: an OIDC discovery document and
// the public key.
//
// A token says what Kubernetes' own would: who (system:serviceaccount:…), for
// whom (audience), until when, and which pod on which node it was made for. The
// signing key derives from a seed, so the same seed verifies what was signed
// before a restart. The package knows no rights: who may ask for a token is
// decided by whoever calls Sign.
package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/tallyman-dev/tallyman/nodes"
)

const (
	// MinExpiry is the least that Kubernetes lets a pod ask for.
	MinExpiry = 10 * time.Minute
	// algorithm of the signatures; every verifier of OIDC tokens that Kubernetes' clients use knows it.
	algorithm = jose.ES256
)

// Signer signs with one key. Safe for concurrent use.
type Signer struct {
	seed   []byte
	key    *ecdsa.PrivateKey
	id     string
	signer jose.Signer
}

// New derives the signing key from a secret seed of at least 32 bytes.
func New(seed []byte) (*Signer, error) {
	if len(seed) < 32 {
		return nil, errors.New("token: the seed must have 32 bytes")
	}
	key, err := deriveKey(seed)
	if err != nil {
		return nil, fmt.Errorf("derive the signing key: %w", err)
	}
	public := jose.JSONWebKey{Key: key.Public()}
	print, err := public.Thumbprint(crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("name the signing key: %w", err)
	}
	s := &Signer{seed: seed, key: key, id: base64.RawURLEncoding.EncodeToString(print)}
	s.signer, err = jose.NewSigner(
		jose.SigningKey{Algorithm: algorithm, Key: jose.JSONWebKey{Key: key, KeyID: s.id}}, nil,
	)
	return s, err
}

// deriveKey tries numbers that the seed gives until one is a key, which almost
// every number is.
func deriveKey(seed []byte) (*ecdsa.PrivateKey, error) {
	var err error
	for try := range 16 {
		var number []byte
		if number, err = hkdf.Key(sha256.New, seed, nil, fmt.Sprintf("signing key %d", try), 32); err != nil {
			return nil, err
		}
		var key *ecdsa.PrivateKey
		if key, err = ecdsa.ParseRawPrivateKey(elliptic.P256(), number); err == nil {
			return key, nil
		}
	}
	return nil, err
}

// claims are those that Kubernetes adds to the registered ones.
type claims struct {
	Kubernetes bound `json:"kubernetes.io"`
}

// bound is what a token was made for.
type bound struct {
	Namespace      string `json:"namespace"`
	Node           *named `json:"node,omitempty"`
	Pod            *named `json:"pod,omitempty"`
	ServiceAccount named  `json:"serviceaccount"`
}

type named struct {
	Name string `json:"name"`
	UID  string `json:"uid"`
}

// Sign makes a token for the ServiceAccount of a pod. An empty audience stands
// for the issuer; an expiry below MinExpiry is an error.
func (s *Signer) Sign(issuer string, p *nodes.Pod, r nodes.TokenRequest, now time.Time) (nodes.Token, error) {
	if issuer == "" {
		return nodes.Token{}, errors.New("the issuer of tokens is not known yet: no revision is in force")
	}
	if r.Expiry < MinExpiry {
		return nodes.Token{}, fmt.Errorf("a token must hold for %s at least, not %s", MinExpiry, r.Expiry)
	}
	audience := r.Audience
	if audience == "" {
		audience = issuer
	}
	account := p.Template.Spec.ServiceAccountName
	if account == "" {
		account = "default"
	}
	now = now.UTC().Truncate(time.Second)
	expires := now.Add(r.Expiry)
	registered := jwt.Claims{
		Issuer: issuer, Subject: "system:serviceaccount:" + p.Namespace + ":" + account, Audience: jwt.Audience{audience},
		IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(expires), ID: newID(),
	}
	private := claims{bound{
		Namespace:      p.Namespace,
		Node:           &named{p.Node, s.uid("node", "", p.Node)},
		Pod:            &named{p.Name, string(p.UID)},
		ServiceAccount: named{account, s.uid("serviceaccount", p.Namespace, account)},
	}}
	text, err := jwt.Signed(s.signer).Claims(registered).Claims(private).Serialize()
	if err != nil {
		return nodes.Token{}, fmt.Errorf("sign a token for pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	return nodes.Token{Value: text, Issued: now, Expires: expires}, nil
}

// uid names an object that has no identity of its own: nothing but its name
// tells one ServiceAccount from another.
func (s *Signer) uid(kind, namespace, name string) string {
	mac := hmac.New(sha256.New, s.seed)
	fmt.Fprintf(mac, "uid\x00%s\x00%s\x00%s", kind, namespace, name)
	return uuid([16]byte(mac.Sum(nil)), 8)
}

// newID tells tokens apart.
func newID() string {
	var b [16]byte
	rand.Read(b[:])
	return uuid(b, 4)
}

// uuid writes 16 bytes in the form of RFC 9562.
func uuid(b [16]byte, version byte) string {
	b[6] = b[6]&0x0f | version<<4
	b[8] = b[8]&0x3f | 0x80
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// Keys is the JSON Web Key Set (RFC 7517) that verifies the tokens.
func (s *Signer) Keys() ([]byte, error) {
	return json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{
		{Key: s.key.Public(), KeyID: s.id, Algorithm: string(algorithm), Use: "sig"},
	}})
}

// KeysPath is where Kubernetes serves the key set.
const KeysPath = "/openid/v1/jwks"

// Discovery is the document of OpenID Connect Discovery 1.0 for an issuer whose
// key set is at keys, a URL.
func Discovery(issuer, keys string) ([]byte, error) {
	return json.Marshal(map[string]any{
		"issuer":                                issuer,
		"jwks_uri":                              keys,
		"response_types_supported":              []string{"id_token"},
		"subject_types_supported":               []string{"public"},
		"id_token_signing_alg_values_supported": []string{string(algorithm)},
	})
}
