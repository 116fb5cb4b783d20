package keeper

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// A rotation that could move the files and not open a new one moves them once,
// however often somebody writes meanwhile.
func TestFailedRotationLosesNoLogs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := openFile(path, 4, 3)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	for _, record := range []string{"one\n", "two\n", "six\n"} {
		if err := l.write([]byte(record)); err != nil {
			t.Fatal(err)
		}
	}
	withoutDescriptors(t, func() {
		for range 5 {
			if err := l.write([]byte("new\n")); !errors.Is(err, unix.EMFILE) {
				t.Errorf("written without a descriptor: %v", err)
			}
		}
	})
	if err := l.write([]byte("new\n")); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for i := range 4 {
		if data, err := os.ReadFile(rotated(path, i)); err == nil {
			got[filepath.Base(rotated(path, i))] = string(data)
		}
	}
	if diff := cmp.Diff(map[string]string{"log": "new\n", "log.1": "six\n", "log.2": "two\n"}, got); diff != "" {
		t.Error(diff)
	}
}

// withoutDescriptors runs f while the process can open no file.
func withoutDescriptors(t *testing.T, f func()) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
	}()
	f()
}

// A keeper that dies in the midst of a rotation leaves one of the files out.
func TestARotationThatWasCutShortLosesNoLogs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := openFile(path, 60, 9)
	if err != nil {
		t.Fatal(err)
	}
	write := func(text string) {
		t.Helper()
		if err := l.write([]byte("2026-01-01T00:00:00Z stdout F " + text + "\n")); err != nil {
			t.Fatal(err)
		}
	}
	read := func(want string) {
		t.Helper()
		var out bytes.Buffer
		if err := Read(t.Context(), path, ReadOptions{}, &out); err != nil || out.String() != want {
			t.Errorf("read %q, %v; want %q", out.String(), err, want)
		}
	}
	for _, text := range []string{"a", "b", "c"} {
		write(text)
	}
	l.close()
	for i := 2; i > 0; i-- { // all but the newest were moved
		if err := os.Rename(rotated(path, i), rotated(path, i+1)); err != nil {
			t.Fatal(err)
		}
	}
	read("a\nb\nc\n")
	if l, err = openFile(path, 60, 9); err != nil {
		t.Fatal(err)
	}
	defer l.close()
	write("d")
	read("a\nb\nc\nd\n")
	if _, err := os.Stat(rotated(path, 4)); err == nil {
		t.Error("the free place was not filled")
	}
}

// TestReaderOpensWhileItIsRotated: links stand for what a reader finds that was
// held up for two rotations between opening one file and the next.
func TestReaderOpensWhileItIsRotated(t *testing.T) {
	for found, want := range map[string]string{"aa": "a", "aba": "ab", "abba": "ab", "bcba": "abc", "abacbaa": "abc"} {
		dir := t.TempDir()
		r := &reader{path: filepath.Join(dir, "log")}
		for i, name := range found {
			source := filepath.Join(dir, string(name))
			if err := os.WriteFile(source, []byte(string(name)), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Link(source, rotated(r.path, i)); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.openAll(); err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, f := range r.files {
			name, err := io.ReadAll(f)
			if err != nil {
				t.Fatal(err)
			}
			got += string(name)
		}
		r.close()
		if got != want {
			t.Errorf("found %s, reads %q, want %q", found, got, want)
		}
	}
}
