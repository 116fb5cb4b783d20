//go:build e2e

// Package trust_test has machines join for real: over the wire between them,
// with the commands that a person types.
package trust_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/test/machine"
	"github.com/tallyman-dev/tallyman/test/machine/cluster"
)

func TestMain(m *testing.M) { cluster.Main(m) }

const patience = 60 * time.Second

// pod shares its machine's processes, for the test to find its own among them.
const pod = `apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec: {hostPID: true, containers: [{name: main, image: IMAGE}]}
`

// TestJoining walks the life of a cluster's names: a machine that ran tally up
// becomes the first of a cluster, another joins it, comes back without its token,
// loses its name to a third, and the server loses everything but its key.
func TestJoining(t *testing.T) {
	c := cluster.New(t)
	image := c.PushImage("github.com/tallyman-dev/tallyman/test/e2e/inside", "inside:1")
	first, second, third := c.Machine("first"), c.Machine("second"), c.Machine("third")
	first.StartTally("up")
	first.AwaitReady()
	if r := first.Tally("token", "create"); r.Code == 0 || !strings.Contains(r.Err, "--listen") {
		t.Errorf("a token of a server that takes in nobody: %+v", r)
	}
	clone := first.Clone()
	clone.Write("web.yaml", strings.ReplaceAll(pod, "IMAGE", image))
	clone.Apply("a pod")
	container := running(t, first)

	first.TallyProcess().Stop()
	first.StartTally("up", "--listen", ":7400")
	first.AwaitReady()
	if now := running(t, first); now != container {
		t.Errorf("the pod's process was %s and is %s", container, now)
	}

	bad := second.Run("tally", "agent", "--server", "https://"+first.Address+":7400", "--token", "tally1.abc")
	if bad.Code != 2 || !strings.Contains(bad.Err, "copy the whole line") {
		t.Errorf("a damaged token: %+v", bad)
	}
	second.StartTally(line(t, first, "--uses", "1")...)
	await(t, c, first, "second", true)

	// It needs no token any more, whatever its host is called.
	second.TallyProcess().Stop()
	second.StartTally("agent", "--server", "https://"+first.Address+":7400")
	await(t, c, first, "second", true)

	// Another machine of that name gets in with leave only.
	taken := third.Run("tally", append(line(t, first), "--node-name", "second")...)
	if taken.Code != 1 || !strings.Contains(taken.Err, "node second is already joined from "+second.Address) {
		t.Errorf("a second machine of one name: %+v", taken)
	}
	if !first.LogHas("node second is already joined from " + second.Address) {
		t.Error("the server does not tell of it")
	}
	third.StartTally(line(t, first, "--node", "second", "--replace")...)
	c.Eventually(patience, "the second machine learns that it is replaced", func() error {
		if !second.LogHas("node second is already joined from " + third.Address) {
			return errors.New("its log does not say so")
		}
		return nil
	})
	c.Eventually(patience, "the third machine has a session", func() error {
		if !third.LogHas("session with the server") {
			return errors.New("its log does not say so")
		}
		return nil
	})
	await(t, c, first, "second", true)

	// All that the server keeps is lost, but the exported key.
	secret(t, first.File("/root/passphrase"))
	must(t, first.Tally("key", "export", "--passphrase-file", "/root/passphrase", "/root/cluster.key"))
	first.TallyProcess().Stop()
	for _, name := range []string{"key", "server"} {
		must(t, first.Run("rm", "-r", "/var/lib/tallyman/"+name))
	}
	if r := first.Run("tally", "up"); r.Code != 1 || !strings.Contains(r.Err, "tally key import") {
		t.Errorf("without its key: %+v", r)
	}
	must(t, first.Tally("key", "import", "--passphrase-file", "/root/passphrase", "/root/cluster.key"))
	first.StartTallyAgain()
	first.AwaitReady()
	await(t, c, first, "second", true)
	if now := running(t, first); now != container {
		t.Errorf("the pod's process was %s and is %s", container, now)
	}

	// Both kinds of machines are cleared.
	for _, m := range []*cluster.Machine{first, third} {
		m.TallyProcess().Stop()
		must(t, m.Tally("reset"))
		if keeper := m.Keeper(); keeper != 0 {
			t.Errorf("%s: the keeper %d is left", m.Name, keeper)
		}
	}
}

// line is the command that tally token create prints, without its first word.
func line(t *testing.T, server *cluster.Machine, args ...string) []string {
	t.Helper()
	r := must(t, server.Tally("token", append([]string{"create", "--server", "https://" + server.Address + ":7400"}, args...)...))
	words := strings.Fields(r)
	if len(words) < 6 || words[0] != "tally" || words[1] != "agent" {
		t.Fatalf("tally token create prints %q", r)
	}
	return words[1:]
}

// running is the one process of the pod on a machine.
func running(t *testing.T, m *cluster.Machine) string {
	t.Helper()
	found := m.Processes("/program")
	if len(found) != 1 {
		t.Fatalf("%s runs the processes %v, want one", m.Name, found)
	}
	return fmt.Sprint(found[0])
}

// await waits until the server shows a node as ready, or not.
func await(t *testing.T, c *cluster.Cluster, server *cluster.Machine, name string, ready bool) {
	t.Helper()
	c.Eventually(patience, fmt.Sprintf("node %s, ready %v", name, ready), func() error {
		o, err := server.Overview()
		if err != nil {
			return err
		}
		for _, n := range o.Nodes {
			if n.Name == name && n.Ready == ready {
				return nil
			}
		}
		return fmt.Errorf("the nodes are %+v", o.Nodes)
	})
}

func secret(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("correct horse battery\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func must(t *testing.T, r machine.Result) string {
	t.Helper()
	if r.Code != 0 {
		t.Fatalf("%+v", r)
	}
	return r.Out
}
