package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tallyman-dev/tallyman/status/statustest"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestValidateJSON holds the outward form of tally validate -o json, and its
// exit codes.
func TestValidateJSON(t *testing.T) {
	var out, errs bytes.Buffer
	code := run(t.Context(), streams{in: &bytes.Buffer{}, out: &out, err: &errs}, []string{"validate", "-o", "json", "testdata/broken"})
	if code != exitFindings {
		t.Errorf("exit code %d, want %d: %s", code, exitFindings, errs.String())
	}
	golden(t, "validate.json", out.Bytes())
}

// TestStatusJSON holds the outward form of tally status -o json.
func TestStatusJSON(t *testing.T) {
	var out bytes.Buffer
	if err := printJSON(streams{out: &out}, statustest.Troubled()); err != nil {
		t.Fatal(err)
	}
	golden(t, "status.json", out.Bytes())
}

func TestExitCodes(t *testing.T) {
	for _, test := range []struct {
		args []string
		want int
	}{
		{[]string{"version"}, 0},
		{[]string{"validate", "../../examples-repo"}, 0},
		{[]string{"validate", "testdata/broken"}, exitFindings},
		{[]string{"validate", "testdata/absent"}, exitUsage},
		{[]string{"validate", "-o", "xml", "testdata/broken"}, exitUsage},
		{[]string{"validate"}, exitUsage},
		{[]string{"sail"}, exitUsage},
		{[]string{"version", "--flag"}, exitUsage},
		{[]string{"wait", "--commit", "abc"}, exitUsage},
		{[]string{"status", "--run-dir", "testdata"}, exitFailed},
	} {
		var out, errs bytes.Buffer
		if code := run(t.Context(), streams{in: &bytes.Buffer{}, out: &out, err: &errs}, test.args); code != test.want {
			t.Errorf("tally %v: exit code %d, want %d: %s", test.args, code, test.want, errs.String())
		}
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s differs (-want +got):\n%s", name, diff)
	}
}
