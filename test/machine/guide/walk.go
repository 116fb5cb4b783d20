package guide

import (
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/test/machine"
	"github.com/tallyman-dev/tallyman/test/machine/cluster"
)

//go:embed systemctl
var systemctl []byte

// patience is how long a step may take.
const patience = time.Minute

// Walk is a walk through guides.
type Walk struct {
	// Words of guides with what they stand for here.
	Words map[string]string

	c        *cluster.Cluster
	t        testing.TB
	machines map[string]*cluster.Machine
}

// New gives the machines of the guides names, and what a reader's have.
func New(t testing.TB, c *cluster.Cluster, machines map[string]*cluster.Machine) *Walk {
	t.Helper()
	w := &Walk{Words: map[string]string{"registry.example.org": cluster.RegistryAddress}, c: c, t: t, machines: machines}
	for _, m := range machines {
		w.equip(m)
	}
	return w
}

func (w *Walk) equip(m *cluster.Machine) {
	w.t.Helper()
	w.write(m, "/usr/local/bin/systemctl", systemctl, 0o755)
	if err := os.MkdirAll(m.File("/etc/systemd/system"), 0o755); err != nil {
		w.t.Fatal(err)
	}
}

func (w *Walk) write(m *cluster.Machine, path string, content []byte, mode os.FileMode) {
	w.t.Helper()
	if err := os.MkdirAll(filepath.Dir(m.File(path)), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(m.File(path), content, mode); err != nil {
		w.t.Fatal(err)
	}
}

// Follow does what a page says.
func (w *Walk) Follow(page string) {
	w.t.Helper()
	steps, err := read(filepath.Join(machine.Root(w.t), page))
	if err != nil {
		w.t.Fatalf("%s: %v", page, err)
	}
	for _, s := range steps {
		for _, name := range s.on {
			m := w.machines[name]
			if m == nil {
				w.t.Fatalf("%s: no machine %q for:\n%s", page, name, s.text)
			}
			switch {
			case s.lost:
				w.lose(m)
			case len(s.brought) > 0:
				w.bring(m, s)
			default:
				w.do(page, m, s)
			}
		}
	}
}

func (w *Walk) lose(m *cluster.Machine) {
	w.t.Helper()
	w.t.Logf("%s is lost", m.Name)
	m.Die()
	m.NewDisk()
	m.Boot()
	w.equip(m)
}

func (w *Walk) bring(m *cluster.Machine, s step) {
	w.t.Helper()
	for _, name := range s.brought {
		path := filepath.Join("/root", name)
		content, err := os.ReadFile(w.machines[s.from].File(path))
		if err != nil {
			w.t.Fatal(err)
		}
		w.write(m, path, content, 0o600)
	}
}

// joinLine is what tally token create prints.
var joinLine = regexp.MustCompile(`(?m)^tally agent --server \S+ .*--token (\S+)$`)

func (w *Walk) do(page string, m *cluster.Machine, s step) {
	w.t.Helper()
	text := s.text
	for word, meaning := range w.Words {
		text = strings.ReplaceAll(text, word, meaning)
	}
	// The sources and the reader's home are on every machine.
	root := machine.Root(w.t)
	script := "set -e; export HOME=/root GIT_CONFIG_NOSYSTEM=1; cd /root; ln -sfn '" + root + "/docs' docs; ln -sfn '" + root + "/build' build\n" + text
	var r machine.Result
	try := func() error {
		if r = m.Run("sh", "-c", script); r.Code != 0 {
			return fmt.Errorf("exit status %d: %s", r.Code, strings.TrimSpace(r.Out+r.Err))
		}
		return nil
	}
	if s.patient {
		w.c.Eventually(patience, page+" on "+m.Name+": "+text, try)
	} else if err := try(); err != nil {
		w.t.Fatalf("%s on %s:\n%s\n%v", page, m.Name, text, err)
	}
	w.t.Logf("%s on %s:\n%s\n%s%s", page, m.Name, text, r.Out, r.Err)
	if found := joinLine.FindStringSubmatch(r.Out); found != nil {
		w.Words["tally1.…"] = found[1]
	}
}
