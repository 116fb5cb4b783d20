package trust

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/tallyman-dev/tallyman/nodes"
)

// sealedKind is the kind of all decisions that nodes see.
const sealedKind = "sealed"

// ErrUnsealed is returned for a decision that bears no seal at all.
var ErrUnsealed = errors.New("the decision bears no seal")

// Seal makes a decision one that a node can keep, and neither read nor change:
// kind, key and value are encrypted, the name that is left tells only whether
// two are about the same.
func (a *Authority) Seal(d nodes.Decision) (nodes.Decision, error) {
	sealed := nodes.Decision{Kind: sealedKind, Key: a.sealedName(d)}
	if d.Value == nil {
		return sealed, nil
	}
	content, err := json.Marshal(d)
	if err != nil {
		return nodes.Decision{}, fmt.Errorf("seal decision %s %s: %w", d.Kind, d.Key, err)
	}
	nonce := make([]byte, a.ledger.NonceSize(), a.ledger.NonceSize()+len(content)+a.ledger.Overhead())
	rand.Read(nonce)
	sealed.Value, err = json.Marshal(a.ledger.Seal(nonce, nonce, content, []byte(sealed.Key)))
	return sealed, err
}

func (a *Authority) sealedName(d nodes.Decision) string {
	mac := hmac.New(sha256.New, a.names)
	fmt.Fprintf(mac, "%d %s%s", len(d.Kind), d.Kind, d.Key)
	return hex.EncodeToString(mac.Sum(nil)[:16])
}

// Open gives back what was sealed. The error says why a decision is not to be
// believed.
func (a *Authority) Open(sealed nodes.Decision) (nodes.Decision, error) {
	if sealed.Kind != sealedKind {
		return nodes.Decision{}, ErrUnsealed
	}
	var box []byte
	if err := json.Unmarshal(sealed.Value, &box); err != nil || len(box) < a.ledger.NonceSize() {
		return nodes.Decision{}, errors.New("the sealed decision is damaged")
	}
	size := a.ledger.NonceSize()
	content, err := a.ledger.Open(nil, box[:size], box[size:], []byte(sealed.Key))
	if err != nil {
		return nodes.Decision{}, errors.New("the decision was sealed with another key, or changed since")
	}
	var d nodes.Decision
	if err := json.Unmarshal(content, &d); err != nil {
		return nodes.Decision{}, fmt.Errorf("read a sealed decision: %w", err)
	}
	return d, nil
}
