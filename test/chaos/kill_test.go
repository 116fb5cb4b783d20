//go:build e2e

package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
)

// victims are what is killed: each alone, and together with others.
var victims = []struct {
	name                   string
	up, keeper, containerd bool
}{
	{name: "tally up", up: true},
	{name: "keeper", keeper: true},
	{name: "containerd", containerd: true},
	{name: "tally up and keeper", up: true, keeper: true},
	{name: "tally up and containerd", up: true, containerd: true},
	{name: "everything", up: true, keeper: true, containerd: true},
}

// seed is the flag's, or a new one.
func seed(t *testing.T) *rand.Rand {
	s := *seedFlag
	if s == 0 {
		s = time.Now().UnixNano()
	}
	t.Logf("again with the same moments: -seed %d", s)
	return rand.New(rand.NewPCG(uint64(s), 0))
}

// TestKillsInTheMiddleOfRollouts rolls a deployment again and again and kills
// parts of Tallyman, and containerd, at random moments. A deployment that does
// not change must not notice.
func TestKillsInTheMiddleOfRollouts(t *testing.T) {
	random := seed(t)
	c := newCluster(t)
	rolled := deployment{name: "rolled", replicas: 3, image: c.images[0], change: "0"}
	c.put(rolled)
	c.put(deployment{name: "steady", replicas: 2, image: c.images[0], nodePort: 30080})
	c.clone.Apply("begin")
	steady := c.pods("steady")
	before := c.processes(steady)
	service := c.serviceOf("steady")

	sha := ""
	for i := range *moments {
		rolled.change = fmt.Sprint(i + 1)
		c.put(rolled)
		sha = c.clone.Commit("roll " + rolled.change)
		if r := c.clone.Push("-o", "tally.wait=false"); r.Code != 0 {
			t.Fatalf("push: exit code %d: %s", r.Code, r.Err)
		}
		delay := time.Duration(random.Int64N(int64(1500 * time.Millisecond)))
		victim := victims[random.IntN(len(victims))]
		after := fmt.Sprintf("moment %d, %s killed %s after the push", i, victim.name, delay)
		<-time.After(delay) // the moment itself; nothing is waited for
		c.kill(victim.up, victim.keeper, victim.containerd, func() {
			if !victim.keeper {
				c.Eventually(patience, after+": names resolve", func() error { return resolves("steady", service.ClusterIPs[0]) })
			}
			if answer, err := get(c.serviceAddress(service), "/"); err != nil {
				t.Errorf("%s: the service does not answer: %q %v", after, answer, err)
			}
		})
		c.checkUnmoved(before, after)
		c.checkSingle(after)
		c.Eventually(patience, after+": names resolve", func() error { return resolves("steady", service.ClusterIPs[0]) })
		if t.Failed() {
			t.Fatal("see above")
		}
	}
	c.WaitConverged(sha, time.Minute)
	c.checkUnmoved(before, "at the end")
	c.checkExactly(map[string]int{"rolled": 3, "steady": 2})
	for _, p := range steady {
		c.checkWrites(p, "at the end")
		c.checkLines(p, true)
	}
}

// kill kills what it is told to, looks while it is dead, and starts it again.
// The keeper is started again by the agent.
func (c *cluster) kill(up, keeper, containerd bool, meanwhile func()) {
	c.t.Helper()
	// A keeper without an agent stays dead, so the agent goes first.
	if up {
		c.Kill()
	}
	if keeper {
		c.Eventually(patience, "a keeper runs", func() error {
			pid, err := c.keeperPID()
			if err == nil {
				err = syscall.Kill(pid, syscall.SIGKILL)
			}
			return err
		})
	}
	if containerd {
		if err := c.Containerd.Kill(); err != nil {
			c.t.Fatal(err)
		}
	}
	meanwhile()
	if containerd {
		if err := c.Containerd.Restart(context.Background()); err != nil {
			c.t.Fatal(err)
		}
	}
	if up {
		c.Up()
	}
}

func (c *cluster) serviceAddress(s nodes.ServiceOverview) string { return s.ClusterIPs[0] + ":80" }

// checkExactly holds that exactly these pods run, by deployment.
func (c *cluster) checkExactly(want map[string]int) {
	c.t.Helper()
	total := 0
	for name, n := range want {
		pods := c.pods(name)
		if len(pods) != n {
			c.t.Errorf("%s has %d pods, want %d", name, len(pods), n)
		}
		if got := len(c.processes(pods)); got != n {
			c.t.Errorf("%s has %d containers, want %d", name, got, n)
		}
		total += n
	}
	c.Eventually(patience, "no other container runs", func() error {
		if now, err := c.running(); err != nil || len(now) != total {
			return fmt.Errorf("%d containers, want %d: %v %v", len(now), total, now, err)
		}
		return nil
	})
}

// TestALongAbsence stops tally up and looks at what must go on without it.
func TestALongAbsence(t *testing.T) {
	c := newCluster(t)
	c.put(deployment{name: "steady", replicas: 2, image: c.images[0], nodePort: 30080})
	sha, _ := c.clone.Apply("begin")
	steady := c.pods("steady")
	before := c.processes(steady)
	service := c.serviceOf("steady")

	c.Stop()
	for end := time.Now().Add(*away); time.Now().Before(end); {
		if err := resolves("steady", service.ClusterIPs[0]); err != nil {
			t.Fatalf("while tally was away: %v", err)
		}
		for _, address := range []string{c.serviceAddress(service), "127.0.0.1:30080"} {
			if _, err := get(address, "/"); err != nil {
				t.Fatalf("while tally was away: %v", err)
			}
		}
		for _, p := range steady {
			c.checkWrites(p, "while tally was away")
		}
	}
	c.Up()
	c.WaitConverged(sha, time.Minute)
	c.checkUnmoved(before, "after a long absence")
	c.checkExactly(map[string]int{"steady": 2})
	for _, p := range steady {
		c.checkLines(p, false)
	}
}

// TestTheRecordIsLost deletes server/: all is adopted from the node.
func TestTheRecordIsLost(t *testing.T) {
	c := newCluster(t)
	rolled := deployment{name: "rolled", replicas: 2, image: c.images[0], nodePort: 30081}
	for _, change := range []string{"a", "b", "c"} {
		rolled.change = change
		c.put(rolled)
		c.clone.Apply("change " + change)
	}
	before := c.processes(c.pods("rolled"))
	service, sets := c.serviceOf("rolled"), c.replicaSets()
	if len(sets) != 3 {
		t.Fatalf("three templates left the ReplicaSets %v", sets)
	}

	// Who asks the service never meets a moment without it.
	traffic := startLoad(c.serviceAddress(service), 4, false)
	c.loseRecord()
	c.Up()
	c.converged("without the record")
	c.checkUnmoved(before, "without the record")
	c.checkSame(service, sets)

	// The newest revision of the branch is now one that is not accepted, and
	// the record, which knew the last good one, is lost as well.
	c.clone.Write("broken.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: broken}\nspec: {nonsense: true}\n")
	bad := c.clone.Commit("nobody checked this")
	c.loseRecord()
	c.forcePush()
	c.Up()
	c.Eventually(patience, "the head is rejected", func() error {
		o, err := c.Overview()
		if err != nil {
			return err
		}
		if o.Rejected == nil || o.Rejected.Revision.SHA != bad {
			return fmt.Errorf("rejected: %+v, want %s", o.Rejected, bad)
		}
		if o.InForce == nil || len(c.pods("rolled")) != 2 {
			return fmt.Errorf("in force is %+v with pods %v", o.InForce, c.pods("rolled"))
		}
		return nil
	})
	c.checkUnmoved(before, "with an invalid head and no record")
	c.checkSame(service, sets)
	traffic.check(t, "while the record was lost twice", 10)

	// And what is wrong with the head does not keep a good one from coming.
	if err := os.Remove(c.clone.Dir + "/broken.yaml"); err != nil {
		t.Fatal(err)
	}
	rolled.change = "a"
	c.put(rolled)
	c.clone.Apply("back to the first template")
	if now := c.replicaSets(); fmt.Sprint(now) != fmt.Sprint(sets) {
		t.Errorf("ReplicaSets are %v, want %v: the first template has lost its own", now, sets)
	}
	c.checkExactly(map[string]int{"rolled": 2})
}

// loseRecord stops tally and deletes server/.
func (c *cluster) loseRecord() {
	c.t.Helper()
	c.Stop()
	if err := os.RemoveAll(c.DataDir + "/server"); err != nil {
		c.t.Fatal(err)
	}
}

// forcePush moves the branch of the embedded remote without its hooks.
func (c *cluster) forcePush() {
	c.t.Helper()
	c.clone.Git("--git-dir", c.DataDir+"/repo.git", "fetch", "--quiet", c.clone.Dir, "+main:main")
}

// checkSame holds that addresses and history are what they were.
func (c *cluster) checkSame(service nodes.ServiceOverview, sets []string) {
	c.t.Helper()
	c.Eventually(patience, "service and ReplicaSets are what they were", func() error {
		now := c.serviceOf(service.Key.Name)
		if fmt.Sprint(now.ClusterIPs) != fmt.Sprint(service.ClusterIPs) || now.Ports[0].NodePort != service.Ports[0].NodePort {
			return fmt.Errorf("service was %+v, is %+v", service, now)
		}
		if got := c.replicaSets(); fmt.Sprint(got) != fmt.Sprint(sets) {
			return fmt.Errorf("ReplicaSets were %v, are %v", sets, got)
		}
		return nil
	})
	if _, err := get(c.serviceAddress(service), "/"); err != nil {
		c.t.Error(err)
	}
}
