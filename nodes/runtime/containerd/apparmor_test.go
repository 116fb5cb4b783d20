package containerd

import (
	"os/exec"
	"strings"
	"testing"

	profile "github.com/containerd/containerd/v2/contrib/apparmor"
	"github.com/google/go-cmp/cmp"
)

// TestProfileIsContainerds holds the profile to the one that containerd would
// load on this machine, rule by rule.
func TestProfileIsContainerds(t *testing.T) {
	theirs, err := profile.DumpDefaultProfile(defaultProfile)
	if err != nil {
		t.Fatal(err)
	}
	want := meaning(theirs)
	if path, err := exec.LookPath("rootlesskit"); err == nil { // of no use: whoever starts containers is root
		want = strings.Replace(want, "signal (receive) peer="+path+",\n", "", 1)
	}
	if diff := cmp.Diff(want, meaning(makeProfile(defaultProfile))); diff != "" {
		t.Errorf("containerd's profile (-) and ours (+): %s", diff)
	}
}

// meaning leaves out comments, empty lines and indentation.
func meaning(profile string) string {
	var b strings.Builder
	for line := range strings.Lines(profile) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "#include") {
			continue
		}
		rule, _, _ := strings.Cut(line, " # ")
		b.WriteString(strings.TrimSpace(rule) + "\n")
	}
	return b.String()
}
