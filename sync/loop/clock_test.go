package loop

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// setAhead sets the server's wall clock ahead of the time, or right again.
func (w *world) setAhead(d time.Duration) { w.wrong.Store(int64(d)) }

// within waits until something is so, for that long of virtual time.
func (w *world) within(d time.Duration, is func() bool) bool {
	w.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Second) {
		if synctest.Wait(); is() {
			return true
		}
	}
	return false
}

// second has a second node join that takes every pod.
func (w *world) second() {
	room := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("8"), corev1.ResourceMemory: resource.MustParse("32Gi"), corev1.ResourcePods: resource.MustParse("110"),
	}
	info := nodes.Node{
		Name: "n2", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.2")}, PodCIDR: netip.MustParsePrefix("10.244.1.0/24"),
		Capacity: room, Allocatable: room, OS: "linux", Arch: "amd64",
	}
	w.inputs <- Input{
		Node:   &nodes.NodeState{Node: info, Ready: true, Since: time.Now()},
		Report: &nodes.Report{Node: info.Name, Complete: true, Info: &info},
	}
	synctest.Wait()
}

// silence has the machine be silent.
func (w *world) silence() {
	w.record.mu.Lock()
	state := w.record.states["n1"]
	w.record.mu.Unlock()
	state.Ready, state.Since, state.Reason = false, time.Now(), "silent"
	w.inputs <- Input{Node: &state}
	synctest.Wait()
}

func (m *machine) other(node string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.others[node]
}

func webService() *desired.Object {
	return &desired.Object{
		Key: desired.Key{Kind: "Service", Namespace: "default", Name: "web"}, Fingerprint: "web",
		Value: &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
			Spec: corev1.ServiceSpec{
				Selector: map[string]string{"app": "web"}, Type: corev1.ServiceTypeClusterIP,
				Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(80), Protocol: corev1.ProtocolTCP}},
			},
		},
	}
}

// TestClockSetBackDelaysNoFailover: the server's clock was ahead while a revision
// was noticed and is set right, with and without a new server since. The pods of
// a node that dies are given up as soon as ever.
func TestClockSetBackDelaysNoFailover(t *testing.T) {
	for _, c := range []struct {
		name      string
		ahead     time.Duration
		restarted bool
	}{
		{"a minute", time.Minute, false},
		{"an hour", time.Hour, false},
		{"an hour, then a restart", time.Hour, true},
		{"seventy years, then a restart", 70 * 365 * 24 * time.Hour, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			runWith(t, func(w *world) { w.several = true }, func(w *world) {
				w.setAhead(c.ahead)
				w.repository.commit("one", deployment("web", "web:1", 3))
				w.push("one")
				w.second()
				w.setAhead(0)
				if c.restarted {
					w.stop()
					w.start()
					w.machine.connect(w.inputs)
					w.second()
				}
				if got := w.machine.other("n2"); got != 0 {
					t.Fatalf("the second node has %d pods before the first is silent", got)
				}
				w.silence()
				if !w.within(10*time.Second, func() bool { return w.machine.other("n2") == 3 }) {
					t.Errorf("the second node has %d pods 10 s after the first fell silent, want 3", w.machine.other("n2"))
				}
			})
		})
	}
}

// TestClockSetBackHangsNoRollout: the pods that a rollout ends leave the routes
// first, and tables follow each other at a pace.
func TestClockSetBackHangsNoRollout(t *testing.T) {
	runWith(t, func(w *world) { w.pace = 200 * time.Microsecond }, func(w *world) {
		w.setAhead(time.Hour)
		w.repository.commit("one", deployment("web", "web:1", 3), webService())
		w.push("one")
		w.setAhead(0)
		w.repository.commit("two", deployment("web", "web:2", 3), webService())
		w.Advance(revision("two"))
		if !w.within(time.Minute, func() bool { return w.outcome("two") == nodes.OutcomeConverged }) {
			t.Errorf("outcome a minute later is %q; what waits: %+v", w.outcome("two"), w.Overview().Plan.Waiting)
		}
	})
}

// TestClockSetAheadGivesNothingUp: nodes that are heard of keep their pods.
func TestClockSetAheadGivesNothingUp(t *testing.T) {
	runWith(t, func(w *world) { w.several = true }, func(w *world) {
		w.repository.commit("one", deployment("web", "web:1", 3), webService())
		w.repository.commit("two", deployment("web", "web:1", 4), webService())
		w.push("one")
		w.second()
		w.setAhead(time.Hour)
		w.push("two")
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := w.machine.counts()[2]; got != 0 {
			t.Errorf("%d pods were stopped because the clock was set ahead", got)
		}
	})
}

// TestTimeGoesOnAndIsTheClocksAgain: what the planner takes for now never goes back
// and never stands still, and is the wall clock's in the end.
func TestTimeGoesOnAndIsTheClocksAgain(t *testing.T) {
	began := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var wall, boot time.Duration
	c := &clock{wall: func() time.Time { return began.Add(wall) }, boot: func() time.Duration { return boot }}
	c.see(began.Add(time.Hour)) // of the record
	for i, step := range []struct{ boot, wall, want time.Duration }{
		{0, 0, time.Hour},
		{10 * time.Minute, 10 * time.Minute, 69 * time.Minute},
		{20 * time.Minute, 80 * time.Minute, 80 * time.Minute}, // set ahead
		{30 * time.Minute, 60 * time.Minute, 89 * time.Minute}, // and back
		{130 * time.Minute, 160 * time.Minute, 179 * time.Minute},
		{330 * time.Minute, 360 * time.Minute, 360 * time.Minute}, // caught up
		{340 * time.Minute, 370 * time.Minute, 370 * time.Minute},
	} {
		boot, wall = step.boot, step.wall
		if now := c.now().Sub(began); now != step.want {
			t.Errorf("step %d: now is %s, want %s", i, now, step.want)
		}
	}
}
