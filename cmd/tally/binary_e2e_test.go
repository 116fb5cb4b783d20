//go:build e2e

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/tallyman-dev/tallyman/test/machine"
)

// TestNothingCallsMethodsByName looks for the part of text/template that makes
// the linker keep every method of every type. What brought it in is shown by
// go build -ldflags=-dumpdep.
func TestNothingCallsMethodsByName(t *testing.T) {
	binary, err := os.ReadFile(filepath.Join(machine.Root(t), "build", "tally"))
	if err != nil {
		t.Fatalf("%v: run make build first", err)
	}
	if !bytes.Contains(binary, []byte("/text.(*state).evalField")) {
		t.Error("the binary does not name its functions: this test sees nothing")
	}
	if bytes.Contains(binary, []byte("text/template.(*state).evalField")) {
		t.Error("the binary executes text/template: it is a sixth larger than it need be")
	}
}
