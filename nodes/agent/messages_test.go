package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
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

// TestContainerIDsFitTheRuntime: containerd refuses more than 76 characters.
func TestContainerIDsFitTheRuntime(t *testing.T) {
	const uid = "0d5a8f6e-8f2b-8c1d-9b1e-2f3a4b5c6d7e"
	long := strings.Repeat("a", 63)
	id := containerID(uid, long, 99999999)
	if len(id) > 76 || podOf(id) != uid {
		t.Errorf("%d characters: %s, of pod %q", len(id), id, podOf(id))
	}
	if other := containerID(uid, long[:62]+"b", 99999999); other == id {
		t.Errorf("two containers are both %s", id)
	}
	if id := containerID(uid, "web", 2); id != uid+"_web_2" {
		t.Errorf("a short name became %s", id)
	}
}
