package keeper

import (
	"errors"
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
