//go:build e2e

package cluster_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tallyman-dev/tallyman/nodes"
)

// onceDone is a Job that ends, and is not to run again.
const onceDone = `apiVersion: batch/v1
kind: Job
metadata: {name: once}
spec:
  completions: 2
  template: {spec: {restartPolicy: Never, containers: [{name: main, image: ` + insideImage + `, args: [print, done]}]}}
`

// TestServerLost takes the server's disk away and has another server take charge
// with no more than the repository's address and the exported key, while the
// newest revision is invalid. Then Git says something new.
func TestServerLost(t *testing.T) {
	w := newWorld(t)
	for i := range 3 {
		w.join(fmt.Sprintf("node%d", i+1))
	}
	w.awaitReady()
	w.clone.Write("web.yaml", web(30, "thirty"))
	w.clone.Write("once.yaml", onceDone)
	good, _ := w.clone.Apply("thirty pods and a Job")
	key, passphrase := w.exportKey()
	w.clone.Write("bad.yaml", "apiVersion: v1\nkind: Nonsense\nmetadata: {name: bad}\n")
	bad := w.clone.Commit("not valid")
	elsewhere := filepath.Join(t.TempDir(), "elsewhere.git")
	w.clone.Git("clone", "--quiet", "--bare", w.clone.Dir, elsewhere)
	before, processes := w.take(), w.processes()
	traffic := w.begin(append(w.ways(w.nodes[0]), w.ways(w.nodes[2])...))
	traffic.settled(w)

	begun := time.Now()
	w.server.TallyProcess().Kill()
	w.server.LoseDisk()
	if r := w.server.Tally("key", "import", key, "--passphrase-file", passphrase); r.Code != 0 {
		w.t.Fatalf("import the key: %+v", r)
	}
	w.server.StartTally("server", "--repo", elsewhere, "--interval", "1s")
	w.awaitReady()
	w.Eventually(patience, "the last good revision is in force, and the newest refused", func() error {
		o, err := w.server.Overview()
		switch {
		case err != nil:
			return err
		case o.InForce == nil || o.InForce.SHA != good || o.Rejected == nil || o.Rejected.Revision.SHA != bad:
			return fmt.Errorf("in force %v, rejected %v, sync %+v", o.InForce, o.Rejected, o.Sync)
		}
		return nil
	})
	w.awaitPods("web-", 30)
	w.t.Logf("in charge after %s", time.Since(begun).Round(time.Millisecond))
	traffic.settled(w)
	if failed := traffic.end(w.t, "server disk lost", begun); failed > 0 {
		w.t.Errorf("%d requests failed", failed)
	}
	w.same(processes)
	after := w.take()
	if len(after.History) == 0 || after.History[0].Revision.SHA != bad || after.History[0].Outcome != nodes.OutcomeRejected {
		w.t.Errorf("the newest of the history is not the refused revision: %+v", after.History)
	} else {
		after.History = after.History[1:]
	}
	if diff := cmp.Diff(before, after); diff != "" {
		w.t.Errorf("before -, after +:\n%s", diff)
	}

	w.clone.Git("rm", "--quiet", "bad.yaml")
	w.clone.Write("web.yaml", web(4, "thirty"))
	fewer := w.clone.Commit("four of thirty, from elsewhere\n\nTally-Confirm: delete 0")
	w.clone.Git("push", "--quiet", elsewhere, "main")
	w.clone.WaitConverged(fewer, patience)
	for _, p := range w.processes() {
		if !slices.Contains(processes, p) {
			w.t.Errorf("%s was started", p)
		}
	}
	w.once(4 + len(w.nodes))
}

// exportKey writes the cluster's key to a file that all machines see.
func (w *world) exportKey() (key, passphrase string) {
	w.t.Helper()
	dir := w.t.TempDir()
	key, passphrase = filepath.Join(dir, "key"), filepath.Join(dir, "passphrase")
	if err := os.WriteFile(passphrase, []byte("correct horse battery staple\n"), 0o600); err != nil {
		w.t.Fatal(err)
	}
	if r := w.server.Tally("key", "export", key, "--passphrase-file", passphrase); r.Code != 0 {
		w.t.Fatalf("export the key: %+v", r)
	}
	return key, passphrase
}

// known is what a server knows that is not for it to make up.
type known struct {
	History []nodes.HistoryEntry
	// Objects are pods with node, address and start, and what else has an age or
	// an end of its own.
	Objects []string
	// Services with their addresses.
	Services []string
}

func (w *world) take() known {
	w.t.Helper()
	o, err := w.server.Overview()
	if err != nil {
		w.t.Fatal(err)
	}
	k := known{History: o.History}
	for _, h := range o.Objects {
		text := fmt.Sprintf("%s made %s", h.Key, h.Created.Format(time.RFC3339Nano))
		if p := h.Pod; p != nil {
			text += fmt.Sprintf(" on %s at %s, %d restarts", p.Node, p.Status.IP, p.Status.Restarts())
		}
		if j := h.Job; j != nil {
			text += fmt.Sprintf(" %s %d/%d at %s", j.Condition, j.Succeeded, j.Completions, j.Finished.Format(time.RFC3339Nano))
		}
		k.Objects = append(k.Objects, text)
	}
	for _, s := range o.Services {
		k.Services = append(k.Services, s.Key.String()+" "+strings.Join(s.ClusterIPs, " "))
	}
	slices.Sort(k.Objects)
	slices.Sort(k.Services)
	return k
}
