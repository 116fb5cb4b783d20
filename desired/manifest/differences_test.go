package manifest

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

//go:generate go test -run TestDifferencesInGuide -update .

const (
	guide      = "../../docs/coming-from.md"
	guideBegin = "<!-- printed from the tables: go generate ./desired/manifest -->\n"
	guideEnd   = "<!-- end -->\n"
)

func TestDifferencesInGuide(t *testing.T) {
	var b bytes.Buffer
	if err := WriteDifferences(&b); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(guide)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(page), guideBegin)
	printed, after, closed := strings.Cut(rest, guideEnd)
	if !found || !closed {
		t.Fatalf("%s has lost the marks around its table", guide)
	}
	if *update {
		if err := os.WriteFile(guide, []byte(before+guideBegin+b.String()+guideEnd+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if printed != b.String() {
		t.Errorf("the table in %s is not what the tables say: run go generate ./desired/manifest", guide)
	}
}
