package trust

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
)

const (
	// tokenPrefix says what the line is, and in which form.
	tokenPrefix = "tally1."
	// flagReplace lets the token's node take over a name that is joined.
	flagReplace = 1
	macSize     = 16
	// unboundedFor is how long a token may hold that does not bound its uses.
	unboundedFor = 24 * time.Hour
	maxUses      = math.MaxUint16
)

// Token is what a join token is good for.
type Token struct {
	// Authority is the cluster's.
	Authority Hash
	// ID tells tokens apart, in hexadecimal.
	ID      string
	Expires time.Time
	// Node is the only name that may join with it; empty for any.
	Node string
	// Uses is how many nodes may join with it; 0 for any number.
	Uses int
	// Replace lets Node take over the name from another machine.
	Replace bool
}

// tokenHead is the fixed part of a token.
type tokenHead struct {
	Flags   uint8
	Hash    Hash
	ID      [8]byte
	Expires int64
	Uses    uint16
}

var encoding = base64.RawURLEncoding.Strict()

// NewToken makes a token out of t, whose Authority and ID are set here.
func (a *Authority) NewToken(t Token) (string, error) {
	now := a.now()
	switch left := t.Expires.Sub(now); {
	case left <= 0:
		return "", errors.New("a join token must hold for some time: --ttl 1h, say")
	case t.Uses < 0 || t.Uses > maxUses:
		return "", fmt.Errorf("a join token is good for 1 to %d uses, or 0 for any number", maxUses)
	case left > unboundedFor && t.Uses == 0:
		return "", fmt.Errorf("a token that holds longer than %s must bound its uses: --uses 1, say", unboundedFor)
	case t.Replace && t.Node == "":
		return "", errors.New("a token that replaces a node must name it: whoever has the token could take over any other: --node NAME")
	}
	if t.Node != "" {
		if err := CheckName(t.Node); err != nil {
			return "", err
		}
	}
	head := tokenHead{Hash: a.Hash(), Expires: t.Expires.Unix(), Uses: uint16(t.Uses)}
	if t.Replace {
		head.Flags |= flagReplace
	}
	rand.Read(head.ID[:])
	content, err := binary.Append(nil, binary.BigEndian, head)
	if err != nil {
		return "", fmt.Errorf("write a join token: %w", err)
	}
	content = append(content, t.Node...)
	return tokenPrefix + encoding.EncodeToString(append(content, a.tokenMAC(content)...)), nil
}

func (a *Authority) tokenMAC(content []byte) []byte {
	mac := hmac.New(sha256.New, a.tokens)
	mac.Write([]byte(tokenPrefix))
	mac.Write(content)
	return mac.Sum(nil)[:macSize]
}

// ParseToken reads a token without believing it.
func ParseToken(text string) (Token, error) {
	t, _, _, err := parseToken(text)
	return t, err
}

func parseToken(text string) (t Token, content, mac []byte, err error) {
	body, found := strings.CutPrefix(strings.TrimSpace(text), tokenPrefix)
	if !found {
		return Token{}, nil, nil, fmt.Errorf("this is no join token: one begins with %s", tokenPrefix)
	}
	raw, err := encoding.DecodeString(body)
	if err != nil {
		return Token{}, nil, nil, errors.New("the join token is damaged: copy the whole line that tally token create printed")
	}
	size := binary.Size(tokenHead{})
	if len(raw) < size+macSize {
		return Token{}, nil, nil, errors.New("the join token is cut off: copy the whole line that tally token create printed")
	}
	content, mac = raw[:len(raw)-macSize], raw[len(raw)-macSize:]
	var head tokenHead
	if _, err := binary.Decode(content, binary.BigEndian, &head); err != nil {
		return Token{}, nil, nil, fmt.Errorf("read the join token: %w", err)
	}
	t = Token{
		Authority: head.Hash, ID: hex.EncodeToString(head.ID[:]), Expires: time.Unix(head.Expires, 0).UTC(),
		Node: string(content[size:]), Uses: int(head.Uses), Replace: head.Flags&flagReplace != 0,
	}
	return t, content, mac, nil
}

// CheckToken reads a token that a node shows and believes it only when this
// authority made it, for that node, and its time is not over.
func (a *Authority) CheckToken(text, node string) (Token, error) {
	t, content, mac, err := parseToken(text)
	hash := a.Hash()
	switch now := a.now(); {
	case err != nil:
		return Token{}, err
	case !bytes.Equal(t.Authority[:], hash[:]):
		return Token{}, fmt.Errorf("the join token is of another cluster (%s, not %s)", t.Authority.Short(), hash.Short())
	case !hmac.Equal(mac, a.tokenMAC(content)):
		return Token{}, errors.New("the join token was not made by this cluster: make one with tally token create, and copy the whole line")
	case !now.Before(t.Expires):
		return Token{}, fmt.Errorf("the join token expired on %s: make another one with tally token create", t.Expires.Format(time.RFC3339))
	case t.Node != "" && t.Node != node:
		return Token{}, fmt.Errorf("the join token is for node %s, not %s", t.Node, node)
	}
	return t, nil
}
