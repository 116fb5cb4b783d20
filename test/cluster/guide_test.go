//go:build e2e

package cluster_test

import (
	_ "embed"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tallyman-dev/tallyman/test/machine"
	"github.com/tallyman-dev/tallyman/test/machine/cluster"
)

//go:embed systemctl
var systemctl []byte

// step is an indented block of a guide, below a comment that says where it is to
// be run: "on: first, second" or "on: first, until it works".
type step struct {
	on      []string
	patient bool
	text    string
}

// marked is a block with the comment above it, if there is one.
var marked = regexp.MustCompile(`(?m)(?:^<!-- (.*) -->\n\n?)?((?:^    .*\n(?:\n+(?:    ))?)+)`)

// readGuide returns the steps of a page. A block that is only shown says so; one
// without a word is a mistake, for nobody tries it.
func readGuide(t *testing.T, page string) []step {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(machine.Root(t), page))
	if err != nil {
		t.Fatal(err)
	}
	var steps []step
	for _, found := range marked.FindAllStringSubmatch(string(content), -1) {
		where, block := found[1], strings.TrimSuffix(strings.ReplaceAll("\n"+found[2], "\n    ", "\n"), "\n")[1:]
		on, runs := strings.CutPrefix(where, "on: ")
		if !runs {
			if where != "shown" {
				t.Errorf("%s: nothing says where this runs:\n%s", page, block)
			}
			continue
		}
		on, patient := strings.CutSuffix(on, ", until it works")
		steps = append(steps, step{on: strings.Split(on, ", "), patient: patient, text: block})
	}
	if len(steps) == 0 {
		t.Fatalf("%s: no steps", page)
	}
	return steps
}

// walk follows guides: machines by the names that they have there.
type walk struct {
	*cluster.Cluster
	t        *testing.T
	machines map[string]*cluster.Machine
	// words of the guide with what they stand for here.
	words map[string]string
}

func newWalk(t *testing.T, names ...string) *walk {
	w := &walk{Cluster: cluster.New(t), t: t, machines: map[string]*cluster.Machine{}, words: map[string]string{"registry.example.org": cluster.RegistryAddress}}
	w.PushImage(inside, "inside:1")
	for i, name := range names {
		m := w.Machine(name)
		w.machines[name] = m
		w.words["192.0.2."+string(rune('1'+i))] = m.Address
		if err := os.MkdirAll(m.File("/etc/systemd/system"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(m.File("/usr/local/bin/systemctl"), systemctl, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// follow does what a page says.
func (w *walk) follow(page string) {
	w.t.Helper()
	for _, s := range readGuide(w.t, page) {
		for _, name := range s.on {
			m := w.machines[name]
			if m == nil {
				w.t.Fatalf("%s: no machine %q for:\n%s", page, name, s.text)
			}
			w.do(page, m, s)
		}
	}
}

// joinLine is what tally token create prints.
var joinLine = regexp.MustCompile(`(?m)^tally agent --server \S+ .*--token (\S+)$`)

func (w *walk) do(page string, m *cluster.Machine, s step) {
	w.t.Helper()
	text := s.text
	for word, meaning := range w.words {
		text = strings.ReplaceAll(text, word, meaning)
	}
	// The sources and the reader's home are on every machine.
	script := "set -e; export HOME=/root GIT_CONFIG_NOSYSTEM=1; cd /root; ln -sfn '" + machine.Root(w.t) + "/docs' docs; ln -sfn '" + machine.Root(w.t) + "/build' build\n" + text
	var r machine.Result
	try := func() error {
		r = m.Run("sh", "-c", script)
		if r.Code != 0 {
			return &exitError{r}
		}
		return nil
	}
	if s.patient {
		w.Eventually(patience, page+" on "+m.Name+": "+text, try)
	} else if err := try(); err != nil {
		w.t.Fatalf("%s on %s:\n%s\n%v", page, m.Name, text, err)
	}
	w.t.Logf("%s on %s:\n%s\n%s%s", page, m.Name, text, r.Out, r.Err)
	if found := joinLine.FindStringSubmatch(r.Out); found != nil {
		w.words["tally1.…"] = found[1]
	}
}

type exitError struct{ machine.Result }

func (e *exitError) Error() string { return strings.TrimSpace(e.Out + e.Err) }

// TestGuides follows the guides on machines that have nothing, in the order in
// which they build on each other.
func TestGuides(t *testing.T) {
	w := newWalk(t, "first", "second", "third")
	w.follow("docs/install/cluster.md")
	before := w.containers()
	if len(before) != 6 {
		t.Fatalf("containers of the first guide: %v, want 6", before)
	}
	w.follow("docs/install/upgrades.md")
	w.same(before)
}

func (w *walk) containers() []string {
	var all []string
	for _, m := range w.machines {
		all = append(all, m.Containers()...)
	}
	slices.Sort(all)
	return all
}

// same fails the test unless exactly the containers from before run.
func (w *walk) same(before []string) {
	w.t.Helper()
	if diff := cmp.Diff(before, w.containers()); diff != "" {
		w.t.Errorf("containers before -, after +:\n%s", diff)
	}
}
