package gitrepo

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"net/http"
	"strings"
	"time"
)

const (
	// maxWebhook bounds a webhook's body. GitHub sends at most 25 MiB; what a push
	// event says is a fraction of that.
	maxWebhook = 25 << 20
	// webhookPatience bounds how long a sender may take to send it.
	webhookPatience = 30 * time.Second
)

// Webhook receives a forge's webhooks and calls poke when a push is
// announced. Nothing that it says is believed but that: what was pushed is
// fetched and read. The body is not kept, and not even read from a sender that
// brings no proof.
//
// The sender proves that it knows secret, in the way of its forge: GitHub
// (X-Hub-Signature-256), Gitea, Forgejo and Gogs (X-Gitea-Signature, …),
// GitLab (X-Gitlab-Token) or anybody else (X-Signature-256: sha256=<hex>, the
// HMAC of the body). With an empty secret every request is refused.
func Webhook(secret []byte, poke func()) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// It holds for what a refused sender goes on sending, too. A writer that
		// knows no deadlines has no connection that could be held.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(webhookPatience))
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			http.Error(w, "webhooks are sent with POST", http.StatusMethodNotAllowed)
			return
		}
		p := proofOf(r.Header, secret)
		if p == nil {
			unauthorized(w)
			return
		}
		if !drain(w, r, p) {
			return
		}
		if !p.holds() {
			unauthorized(w)
			return
		}
		if isPush(r.Header) {
			poke()
		}
		w.WriteHeader(http.StatusNoContent)
	})
}

func unauthorized(w http.ResponseWriter) {
	http.Error(w, "the signature is missing or wrong; is the secret the same on both sides?", http.StatusUnauthorized)
}

// drain reads the body into p, at most maxWebhook of it. When it can't,
// it answers the request and reports false.
func drain(w http.ResponseWriter, r *http.Request, p *proof) bool {
	_, err := io.Copy(p.mac, http.MaxBytesReader(w, r.Body, maxWebhook))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		http.Error(w, "the body is too large", http.StatusRequestEntityTooLarge)
	case err != nil:
		http.Error(w, "the body is cut short", http.StatusBadRequest)
	}
	return err == nil
}

// signatureHeaders carry the HMAC-SHA256 of the body in hexadecimal, with or
// without "sha256=" before it.
var signatureHeaders = [...]string{
	"X-Hub-Signature-256", "X-Gitea-Signature", "X-Forgejo-Signature", "X-Gogs-Signature", "X-Signature-256",
}

// proof is what a request brings to show that its sender knows the secret.
type proof struct {
	// mac takes in the body.
	mac hash.Hash
	// signature is what mac must come to; nil when a token has proved all.
	signature []byte
}

func (p *proof) holds() bool { return p.signature == nil || hmac.Equal(p.signature, p.mac.Sum(nil)) }

// proofOf takes the first proof that the headers bring; nil when there is
// none, or when it is wrong whatever the body says.
func proofOf(header http.Header, secret []byte) *proof {
	if len(secret) == 0 {
		return nil
	}
	p := &proof{mac: hmac.New(sha256.New, secret)}
	for _, name := range signatureHeaders {
		if text := header.Get(name); text != "" {
			signature, err := hex.DecodeString(strings.TrimPrefix(text, "sha256="))
			if err != nil || len(signature) != sha256.Size {
				return nil
			}
			p.signature = signature
			return p
		}
	}
	token := header.Get("X-Gitlab-Token")
	// Hashed first: the comparison then takes the same time for any length.
	got, want := sha256.Sum256([]byte(token)), sha256.Sum256(secret)
	if token == "" || subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
		return nil
	}
	return p
}

// isPush reports whether the event is a push. Who names no event means one.
func isPush(header http.Header) bool {
	for _, name := range []string{"X-GitHub-Event", "X-Gitea-Event", "X-Forgejo-Event", "X-Gogs-Event", "X-Gitlab-Event"} {
		if event := header.Get(name); event != "" {
			return event == "push" || event == "Push Hook"
		}
	}
	return true
}
