package agent

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

const testLease = 6 * time.Second

// fencedPod is a pod that must not run twice, with one that may.
func fencedPods() *nodes.Assignment {
	a := assign(
		pod("u1", corev1.PodSpec{Containers: []corev1.Container{container("a")}}),
		pod("u2", corev1.PodSpec{Containers: []corev1.Container{container("a")}}),
	)
	a.Fenced = []nodes.UID{"u1"}
	return a
}

// renew grants leases for as long as d.
func (a *Agent) renew(d time.Duration) {
	for range d / time.Second {
		a.Lease(clock(), testLease)
		settle(time.Second)
	}
}

// fenced are the pods that the server was told are fenced, in order.
func (w *world) fenced() (pods []nodes.UID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.reports {
		pods = append(pods, r.Fenced...)
	}
	return pods
}

func expectWaits(t *testing.T, w *world) {
	t.Helper()
	s := w.last("u1")
	if s.Ready || s.Reason != waitingForLease || !strings.Contains(s.Message, "lease") {
		t.Errorf("the pod says %q: %q, ready %v", s.Reason, s.Message, s.Ready)
	}
}

func TestAFencedPodStartsWithALeaseOnly(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		defer kill()
		a.Assign(fencedPods())
		settle(time.Minute)
		expectRunning(t, w, "u2_a_0")
		expectWaits(t, w)
		if w.mounts["u1"] {
			t.Error("its volumes were touched without a lease")
		}
		if got := w.fenced(); len(got) != 0 {
			t.Errorf("told to be fenced: %v", got)
		}
		a.Lease(clock()-testLease, testLease) // over already
		settle(time.Second)
		expectRunning(t, w, "u2_a_0")
		a.renew(20 * time.Second)
		expectRunning(t, w, "u1_a_0", "u2_a_0")
		if got := w.fenced(); !slices.Equal(got, []nodes.UID{"u1"}) {
			t.Errorf("told to be fenced: %v, want once u1", got)
		}
		report, err := a.Hello(t.Context())
		if err != nil || !slices.Equal(report.Fenced, []nodes.UID{"u1"}) {
			t.Errorf("the complete report says %v, %v", report.Fenced, err)
		}
	})
}

// TestAFencedPodWaitsWhenItsLeaseIsOver: the keeper kills it, the agent says so
// and starts it again with the next lease, at once, for it has not crashed.
func TestAFencedPodWaitsWhenItsLeaseIsOver(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		defer kill()
		a.Assign(fencedPods())
		for round := range 3 {
			a.renew(10 * time.Second)
			if got := w.running(); len(got) != 2 {
				t.Fatalf("round %d: running %v", round, got)
			}
			settle(time.Minute)
			expectRunning(t, w, "u2_a_0")
			expectWaits(t, w)
			if last := w.last("u1").Containers[0].Last; last == nil || last.Reason != "LeaseExpired" || last.ExitCode != 137 {
				t.Errorf("round %d: it ended with %+v", round, last)
			}
		}
		if !slices.Contains(w.reasons(), "LeaseExpired") {
			t.Errorf("events %v", w.reasons())
		}
	})
}

func TestAContainerThatCrashesWaitsForTheLeaseToo(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		defer kill()
		a.Assign(fencedPods())
		a.renew(10 * time.Second)
		settle(testLease - time.Second - time.Millisecond)
		if err := w.runtime.Exit("u1_a_0", 1, false); err != nil {
			t.Fatal(err)
		}
		settle(0)
		expectRunning(t, w, "u1_a_1", "u2_a_0")
		settle(time.Minute)
		if err := w.runtime.Exit("u2_a_0", 1, false); err != nil {
			t.Fatal(err)
		}
		settle(time.Second)
		expectRunning(t, w, "u2_a_1")
	})
}

// TestAfterARebootAFencedPodWaits: the store says that it is fenced, the server
// is away.
func TestAfterARebootAFencedPodWaits(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.boot = "first"
		a, kill := w.start()
		a.Assign(fencedPods())
		a.renew(5 * time.Second)
		kill()
		w.boot = "second"
		for _, id := range w.running() {
			if err := w.runtime.Exit(id, 137, false); err != nil {
				t.Fatal(err)
			}
		}
		clear(w.fences)
		a, kill = w.start()
		defer kill()
		settle(time.Minute)
		expectRunning(t, w, "u2_a_1")
		expectWaits(t, w)
		a.renew(2 * time.Second)
		expectRunning(t, w, "u1_a_1", "u2_a_1")
	})
}

// TestTheNextAgentLeavesFencesAlone: it neither extends them nor lets them go,
// and starts what crashes within the lease that the last agent was granted.
func TestTheNextAgentLeavesFencesAlone(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		a.Assign(fencedPods())
		a.renew(5 * time.Second)
		kill()
		a, kill = w.start()
		defer kill()
		settle(time.Second)
		report, err := a.Hello(t.Context())
		if err != nil || !slices.Equal(report.Fenced, []nodes.UID{"u1"}) {
			t.Errorf("the complete report says %v, %v", report.Fenced, err)
		}
		if err := w.runtime.Exit("u1_a_0", 1, false); err != nil {
			t.Fatal(err)
		}
		settle(time.Second)
		expectRunning(t, w, "u1_a_1", "u2_a_0")
		settle(testLease)
		expectRunning(t, w, "u2_a_0")
		expectWaits(t, w)
	})
}

func TestOnlyPodsOfTheNewestAssignmentAreExtended(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		defer kill()
		x := fencedPods()
		x.Fenced = []nodes.UID{"u1", "u2"}
		a.Assign(x)
		a.renew(5 * time.Second)
		expectRunning(t, w, "u1_a_0", "u2_a_0")

		free := *x
		free.Fenced = []nodes.UID{"u1"}
		a.Assign(&free)
		settle(time.Second)
		if held, _ := w.Fences(t.Context()); len(held) != 1 || held[0].Pod != "u1" {
			t.Errorf("held %+v", held)
		}
		// What does not end in time is killed by its fence, though leases come.
		w.mu.Lock()
		ends := w.fences["u1"].Ends
		w.mu.Unlock()
		gone := *x
		gone.Pods, gone.Fenced = x.Pods[1:], nil
		a.Assign(&gone)
		a.renew(2 * time.Second)
		w.mu.Lock()
		h := w.fences["u1"]
		w.mu.Unlock()
		if h != nil && h.Ends > ends {
			t.Errorf("extended to %s from %s", h.Ends, ends)
		}
		a.renew(time.Minute)
		expectRunning(t, w, "u2_a_0")
		if held, _ := w.Fences(t.Context()); len(held) != 0 {
			t.Errorf("held for nobody: %+v", held)
		}
	})
}

func TestWithoutAKeeperNothingFencedStarts(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		defer kill()
		w.noFences = true
		a.Assign(fencedPods())
		a.renew(20 * time.Second)
		expectRunning(t, w, "u2_a_0")
		expectWaits(t, w)
		if got := w.fenced(); len(got) != 0 {
			t.Errorf("told to be fenced: %v", got)
		}
		w.mu.Lock()
		w.noFences = false
		w.mu.Unlock()
		settle(time.Second)
		expectRunning(t, w, "u1_a_0", "u2_a_0")
	})
}

// TestADiskThatIsFullEndsNoLease: the server is not told of a fence that cannot be
// stored, and the others' leases go on.
func TestADiskThatIsFullEndsNoLease(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		defer kill()
		x := fencedPods()
		a.Assign(x)
		a.renew(5 * time.Second)
		if err := a.store.db.Close(); err != nil { // all writes fail from now on
			t.Fatal(err)
		}
		more := *x
		more.Fenced = []nodes.UID{"u1", "u2"}
		a.Assign(&more)
		a.renew(time.Minute)
		expectRunning(t, w, "u1_a_0", "u2_a_0")
		if got := w.fenced(); !slices.Equal(got, []nodes.UID{"u1"}) {
			t.Errorf("told to be fenced: %v, want u1 alone", got)
		}
	})
}

// slow takes its time to make the containers of one pod.
type slow struct {
	runtime.Runtime
	pod  string
	done chan struct{}
}

func (s *slow) Create(ctx context.Context, c runtime.Container) error {
	if c.Pod == s.pod {
		<-s.done
	}
	return s.Runtime.Create(ctx, c)
}

// TestWhatWasGivenAwayDoesNotStart: while the runtime makes a container, the lease
// ends, the pod is given away and the node gets another lease.
func TestWhatWasGivenAwayDoesNotStart(t *testing.T) {
	x := fencedPods()
	for name, next := range map[string]*nodes.Assignment{
		"it is to stop":                      {Pods: []*nodes.Pod{stopped(x.Pods[0], time.Second), x.Pods[1]}, Fenced: x.Fenced},
		"it is to stop and not to be fenced": {Pods: []*nodes.Pod{stopped(x.Pods[0], time.Second), x.Pods[1]}},
		"it is forgotten":                    {Pods: x.Pods[1:]},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				s := &slow{w.runtime, "u1", make(chan struct{})}
				w.reached = s
				a, kill := w.start()
				defer kill()
				a.Assign(x)
				a.renew(2 * time.Second)
				settle(2 * testLease)
				given := *next
				given.Node, given.Network = x.Node, x.Network
				a.Assign(&given)
				a.renew(2 * time.Second)
				close(s.done)
				a.renew(20 * time.Second)
				expectRunning(t, w, "u2_a_0")
				w.mu.Lock()
				defer w.mu.Unlock()
				for _, r := range w.reports {
					if slices.ContainsFunc(r.Events, func(e nodes.Event) bool { return e.Object.Name == "pod-u1" && e.Reason == "Started" }) {
						t.Error("it was started")
					}
				}
			})
		})
	}
}
