//go:build e2e

package servers_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/tallyman-dev/tallyman/test/machine/cluster"
	"github.com/tallyman-dev/tallyman/test/machine/guide"
)

// TestGuide follows the guide for several servers on machines that have nothing.
func TestGuide(t *testing.T) {
	w := &world{Cluster: cluster.New(t), t: t, remote: filepath.Join(t.TempDir(), "remote.git")}
	w.PushImage("github.com/tallyman-dev/tallyman/test/e2e/inside", "inside:1")
	machines := map[string]*cluster.Machine{}
	for _, name := range []string{"a", "b", "c"} {
		machines[name] = w.Machine(name)
		w.machines = append(w.machines, &server{Machine: machines[name]})
	}
	w.git("init", "--quiet", "--bare", "--initial-branch", "main", w.remote)
	walk := guide.New(t, w.Cluster, machines)
	walk.Words["https://git.example.org/cluster.git"] = w.remote
	for i, m := range w.machines {
		walk.Words[fmt.Sprintf("10.0.0.%d", i+1)] = m.Address
	}
	walk.Follow("docs/install/several-servers.md")
	for _, p := range w.settled(w.machines[0], 3, 3) {
		if p.Restarts > 0 {
			t.Errorf("restarted: %+v", p)
		}
	}
}
