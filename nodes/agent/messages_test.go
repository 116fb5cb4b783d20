package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// A container that crashes again and again, with a last word each time, does
// not fill the small directory that its pod has for such files.
func TestMessagesOfEarlierRunsGo(t *testing.T) {
	dir := t.TempDir()
	files := map[string]bool{ // name → stays
		"u1_web_0.termination": false, "u1_web_9.termination": false, "u1_web_10.termination": true,
		"u1_webs_0.termination": true, "u1_log_0.termination": true, "hosts": true,
	}
	for name := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := forgetMessages(dir, containerID("u1", "web", 10)); err != nil {
			t.Fatal(err)
		}
	}
	got := map[string]bool{}
	for name := range files {
		_, err := os.Stat(filepath.Join(dir, name))
		got[name] = err == nil
	}
	if diff := cmp.Diff(files, got); diff != "" {
		t.Error(diff)
	}
}

// TestContainerIDsFitTheRuntime: containerd refuses more than 76 characters, and
// separators that are not between letters or digits.
func TestContainerIDsFitTheRuntime(t *testing.T) {
	const uid = "0d5a8f6e-8f2b-8c1d-9b1e-2f3a4b5c6d7e"
	long := strings.Repeat("a", 63)
	seen := map[string]string{}
	for _, name := range []string{
		"web", long, long[:62] + "b", "simple-secret-secret-key-ref-container", "a--b", "a-b", "a---b", "@pause",
		strings.Repeat("a-", 31) + "a", strings.Repeat("a--", 20) + "a",
	} {
		id := containerID(uid, name, 99999999)
		if err := identifiers.Validate(id); err != nil || podOf(id) != uid {
			t.Errorf("%s is %s, of pod %q: %v", name, id, podOf(id), err)
		}
		if other := seen[id]; other != "" {
			t.Errorf("%s and %s are both %s", name, other, id)
		}
		seen[id] = name
	}
	for _, name := range []string{"web", "a-b", long[:30]} {
		if id := containerID(uid, name, 2); id != uid+"_"+name+"_2" {
			t.Errorf("%s became %s", name, id)
		}
	}
}

// TestEveryContainerNameFits: whatever Kubernetes takes for a name.
func TestEveryContainerNameFits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringMatching(`[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?`).Draw(t, "name")
		id := containerID("0d5a8f6e-8f2b-8c1d-9b1e-2f3a4b5c6d7e", name, rapid.IntRange(0, 99999999).Draw(t, "run"))
		if err := identifiers.Validate(id); err != nil {
			t.Errorf("%s is %s: %v", name, id, err)
		}
	})
}
