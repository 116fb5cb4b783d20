package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestTheKeyTravels from one server to the next, and to no other.
func TestTheKeyTravels(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(at(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"old", "new", "other"} {
		if err := os.Mkdir(at(name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	key, err := openKey(at("old"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openKey(at("other")); err != nil {
		t.Fatal(err)
	}
	write("pass", "correct horse\n")
	write("wrong", "incorrect horse\n")
	write("short", "horse\n")
	write("garbage", "-----BEGIN AGE ENCRYPTED FILE-----\nx\n")
	tally := func(want int, says string, args ...string) string {
		t.Helper()
		var out, errs bytes.Buffer
		if code := run(t.Context(), streams{in: &bytes.Buffer{}, out: &out, err: &errs}, args); code != want || !strings.Contains(errs.String(), says) {
			t.Errorf("tally %v: exit code %d, %q; want %d, %q", args, code, errs.String(), want, says)
		}
		return out.String()
	}
	tally(exitFailed, "8 letters", "key", "export", "--data-dir", at("old"), "--passphrase-file", at("short"), at("x"))
	tally(exitFailed, "there is no cluster key", "key", "export", "--data-dir", at("new"), "--passphrase-file", at("pass"), at("x"))
	tally(exitUsage, "--passphrase-file", "key", "export", "--data-dir", at("old"), at("x"))
	tally(0, "encrypted", "key", "export", "--data-dir", at("old"), "--passphrase-file", at("pass"), at("exported"))
	tally(exitFailed, "exists", "key", "export", "--data-dir", at("old"), "--passphrase-file", at("pass"), at("exported"))
	if text := tally(0, "", "key", "export", "--data-dir", at("old"), "--passphrase-file", at("pass"), "-"); !strings.HasPrefix(text, "-----BEGIN AGE") || strings.Contains(text, string(formatKey(key))) {
		t.Errorf("exported to standard output: %s", text)
	}
	tally(exitFailed, "the passphrase is not the one", "key", "import", "--data-dir", at("new"), "--passphrase-file", at("wrong"), at("exported"))
	tally(exitFailed, "damaged", "key", "import", "--data-dir", at("new"), "--passphrase-file", at("pass"), at("garbage"))
	tally(exitFailed, "key of another cluster", "key", "import", "--data-dir", at("other"), "--passphrase-file", at("pass"), at("exported"))
	tally(0, "start tally server", "key", "import", "--data-dir", at("new"), "--passphrase-file", at("pass"), at("exported"))
	tally(0, "this key already", "key", "import", "--data-dir", at("new"), "--passphrase-file", at("pass"), at("exported"))
	if got, err := openKey(at("new")); err != nil || !bytes.Equal(got, key) {
		t.Errorf("imported %x, %v; want %x", got, err, key)
	}
	for _, name := range []string{"exported", "new/key"} {
		if info, err := os.Stat(at(name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
}

// TestNoKeyIsMadeInTheStead of one that something was encrypted with.
func TestNoKeyIsMadeInTheStead(t *testing.T) {
	dir := t.TempDir()
	if _, err := storeKey(dir); err != nil {
		t.Fatal(err)
	}
	if isAgent(dir) || isServed(dir) {
		t.Error("a machine that ran nothing is taken for more")
	}
	if err := os.MkdirAll(agentDir(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(agentStore(dir), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if !isServed(dir) {
		t.Error("a machine that ran tally up is not known as one")
	}
	if err := os.Remove(keyFile(dir)); err != nil {
		t.Fatal(err)
	}
	for what, open := range map[string]func(string) ([]byte, error){
		"the server's": func(dir string) ([]byte, error) { return openKey(dir) }, "the agent's": openAgentKey,
	} {
		if _, err := open(dir); err == nil || !strings.Contains(err.Error(), "tally reset") {
			t.Errorf("%s: %v", what, err)
		}
	}
}
