//go:build e2e

package e2e_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tallyman-dev/tallyman/test/machine"
)

// TestAnotherRepository follows a bare repository beside tally: noticed by file
// events, rewritten, gone and back, poked by webhooks, at another path.
func TestAnotherRepository(t *testing.T) {
	m := machine.New(t)
	m.PushImage(inside, "inside:1")
	bare, mirror, secret := filepath.Join(m.Dir, "bare.git"), filepath.Join(m.Dir, "mirror.git"), filepath.Join(m.Dir, "secret")
	if r := shell("git init --quiet --bare --initial-branch main '" + mirror + "'"); r.Code != 0 {
		t.Fatal(r.Err)
	}
	if err := os.WriteFile(secret, []byte("shared\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// The repository is not there yet when tally starts; it comes later.
	flags := []string{"--repo", bare, "--mirror-to", mirror, "--webhook-secret-file", secret, "--interval", "1h"}
	m.Up(append(flags, "--path", "live")...)
	w := &world{Machine: m, clone: m.CloneFrom(bare), t: t}
	w.syncState("unreachable", "bare.git")

	if r := shell("git init --quiet --bare --initial-branch main '" + bare + "'"); r.Code != 0 {
		t.Fatal(r.Err)
	}
	w.clone.Write("live/web.yaml", deployment("web", 1, ""))
	w.clone.Write("other/web.yaml", deployment("web", 2, ""))
	first := w.push("first")
	w.WaitConverged(first, patience)
	w.Eventually(patience, "the mirror has it", func() error {
		if r := shell("git -C '" + mirror + "' rev-parse main"); strings.TrimSpace(r.Out) != first {
			return fmt.Errorf("it is at %s%s", r.Out, r.Err)
		}
		return nil
	})

	w.clone.Write("live/web.yaml", deployment("web", 2, ""))
	w.WaitConverged(w.push("noticed"), patience)

	w.clone.Write("live/web.yaml", "kind: Nonsense\n")
	w.push("bad")
	w.syncState("rejected", "")
	w.clone.Git("reset", "--quiet", "--hard", "HEAD~2")
	w.clone.Write("live/web.yaml", deployment("web", 3, ""))
	rewritten := w.push("rewritten")
	w.WaitConverged(rewritten, patience)
	if o := w.overview(); !o.Sync.Rewritten {
		t.Errorf("the branch was rewritten, sync says %+v", o.Sync)
	}

	if err := os.Rename(bare, bare+".away"); err != nil {
		t.Fatal(err)
	}
	if code := webhook(t, "wrong"); code != http.StatusUnauthorized && code != http.StatusForbidden {
		t.Errorf("a webhook with a wrong signature: status %d", code)
	}
	if code := webhook(t, "shared"); code/100 != 2 {
		t.Errorf("a signed webhook: status %d", code)
	}
	w.syncState("unreachable", "bare.git")
	if n := len(machine.Pods(w.overview(), "default", "web-")); n != 3 {
		t.Errorf("without the repository %d pods, want 3", n)
	}
	if err := os.Rename(bare+".away", bare); err != nil {
		t.Fatal(err)
	}
	w.syncState("synced", "")

	// Another path says the same pods away: the guard asks first.
	m.Stop()
	w.clone.Write("empty/note.txt", "nothing here\n")
	w.clone.Write("empty/config.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n")
	w.push("another folder")
	m.Up(append(flags, "--path", "empty")...)
	w.syncState("held", "")
	if o := w.overview(); o.Held == nil || len(machine.Pods(o, "default", "web-")) != 3 {
		t.Errorf("with another path: held %+v", o.Held)
	}
}

// push commits and pushes to a repository that nobody checks.
func (w *world) push(message string) string {
	w.t.Helper()
	sha := w.clone.Commit(message)
	if r := w.clone.Push("--force"); r.Code != 0 {
		w.t.Fatal(r.Err)
	}
	return sha
}

func (w *world) syncState(state, message string) {
	w.t.Helper()
	w.Eventually(patience, "the repository is "+state, func() error {
		o, err := w.Overview()
		if err == nil && (o.Sync.State != state || !strings.Contains(o.Sync.Message, message)) {
			err = fmt.Errorf("%+v", o.Sync)
		}
		return err
	})
}

// webhook tells of a push as GitHub does.
func webhook(t testing.TB, secret string) int {
	t.Helper()
	payload := `{"ref": "refs/heads/main"}`
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(payload))
	request, err := http.NewRequest(http.MethodPost, root+"/webhook", strings.NewReader(payload))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("X-Hub-Signature-256", "sha256="+hex.EncodeToString(mac.Sum(nil)))
	request.Header.Set("X-GitHub-Event", "push")
	request.Header.Set("Content-Type", "application/json")
	return status(t, request).StatusCode
}
