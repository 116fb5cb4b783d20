package loop

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// ask asks for a name, as a machine with a token does.
func (w *world) ask(name, identity string, with ...func(*nodes.Admission)) error {
	w.Helper()
	a := nodes.Admission{Member: nodes.Member{Name: name, Identity: identity, From: "192.0.2.7", Joined: time.Now().UTC()}, Token: "t"}
	for _, f := range with {
		f(&a)
	}
	ctx, cancel := context.WithTimeout(w.Context(), time.Minute)
	defer cancel()
	return w.Admit(ctx, a)
}

func uses(n int) func(*nodes.Admission) {
	return func(a *nodes.Admission) { a.Uses, a.Expires = n, time.Now().Add(time.Hour) }
}

func replacing(a *nodes.Admission) { replacingWith("r", 0)(a) }

func replacingWith(token string, n int) func(*nodes.Admission) {
	return func(a *nodes.Admission) {
		a.Token, a.Uses, a.Replace, a.Expires = token, n, true, time.Now().Add(time.Hour)
	}
}

func assumed(a *nodes.Admission) { a.Token, a.Assumed = "", true }

func (w *world) expectOwner(name, identity string) {
	w.Helper()
	synctest.Wait()
	if got := w.machine.owner(name); got != identity {
		w.Errorf("node %s is %q, want %q", name, got, identity)
	}
}

// anew starts another loop; with a record or without.
func (w *world) anew(record *memory) {
	w.stop()
	w.record = record
	w.machine.owners = map[string]nodes.Member{}
	w.start()
	w.machine.connect(w.inputs)
	time.Sleep(10 * time.Second)
	synctest.Wait()
}

// TestANameBelongsToOneMachine, across restarts, until a token that says so
// gives it to another.
func TestANameBelongsToOneMachine(t *testing.T) {
	runWith(t, func(w *world) { w.several = true }, func(w *world) {
		check := func(err error, refused bool) {
			t.Helper()
			var taken *nodes.TakenError
			if errors.As(err, &taken) != refused || !refused && err != nil {
				t.Errorf("got %v, refused must be %v", err, refused)
			}
		}
		check(w.ask("a", "first"), false)
		check(w.ask("a", "first"), false)
		check(w.ask("a", "second"), true)
		check(w.ask("a", "second", assumed), true)
		w.expectOwner("a", "first")
		w.anew(w.record)
		w.expectOwner("a", "first")
		check(w.ask("a", "second"), true)
		check(w.ask("a", "second", replacing), false)
		w.expectOwner("a", "second")
		check(w.ask("a", "first", assumed), true)
		w.anew(w.record)
		w.expectOwner("a", "second")
		check(w.ask("b", "third"), false)
		if !w.machine.owners["a"].Succeeds || w.machine.owners["b"].Succeeds {
			t.Errorf("who succeeds another: %+v", w.machine.owners)
		}
	})
}

// TestUsesOfATokenAreCounted by machine, durably.
func TestUsesOfATokenAreCounted(t *testing.T) {
	runWith(t, func(w *world) { w.several = true }, func(w *world) {
		for _, c := range []struct {
			name, identity string
			ok             bool
		}{{"a", "1", true}, {"a", "1", true}, {"b", "2", true}, {"c", "3", false}} {
			if err := w.ask(c.name, c.identity, uses(2)); (err == nil) != c.ok || err != nil && !strings.Contains(err.Error(), "used up") {
				t.Errorf("%s: %v, want ok %v", c.name, err, c.ok)
			}
		}
		w.expectOwner("c", "")
		w.anew(w.record)
		if err := w.ask("c", "3", uses(2)); err == nil {
			t.Error("a restart forgot that the token was used up")
		}
		if err := w.ask("c", "3"); err != nil {
			t.Errorf("a token without a bound: %v", err)
		}
		w.setAhead(2 * time.Hour)
		if err := w.ask("d", "4"); err != nil {
			t.Errorf("another machine while the clock is ahead: %v", err)
		}
		w.setAhead(0)
		if err := w.ask("e", "5", uses(2)); err == nil {
			t.Error("a clock that was ahead for a while forgot that the token was used up")
		}
	})
}

// TestNobodyIsTakenInUnrecorded: the certificate would be handed out.
func TestNobodyIsTakenInUnrecorded(t *testing.T) {
	runWith(t, func(w *world) { w.several = true }, func(w *world) {
		w.record.breakDown(true)
		if err := w.ask("a", "first", uses(1)); err == nil || !strings.Contains(err.Error(), "no space left") {
			t.Errorf("taken in with %v", err)
		}
		w.expectOwner("a", "")
		w.record.breakDown(false)
		if err := w.ask("b", "second", uses(1)); err != nil {
			t.Errorf("the attempt that failed counts: %v", err)
		}
	})
}

// TestAMachineIsTakenInBeforeAnyNodeHasReported: there would be none ever. What
// is recorded so is no record of the cluster: ledgers still tell what that was.
func TestAMachineIsTakenInBeforeAnyNodeHasReported(t *testing.T) {
	runWith(t, func(w *world) { w.several = true }, func(w *world) {
		w.repository.commit("one", deployment("web", "app:1", 2))
		w.push("one")
		if err := w.ask("b", "second"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		// The record is lost, a machine joins before anybody reports, and the server
		// falls once more.
		w.stop()
		w.record, w.machine.owners = newMemory(), map[string]nodes.Member{}
		w.start()
		if err := w.ask("c", "third"); err != nil {
			t.Fatal(err)
		}
		w.anew(w.record)
		w.expectOwner("b", "second")
		w.expectOwner("c", "third")
		if got := w.machine.counts(); got != [3]int{2, 2, 0} || w.inForce() != "one" {
			t.Errorf("running, started and stopped pods: %v, in force %q", got, w.inForce())
		}
	})
}

// TestALedgerKnowsBetterThanWhoCameFirst after the record was lost, but not
// better than a token since.
func TestALedgerKnowsBetterThanWhoCameFirst(t *testing.T) {
	runWith(t, func(w *world) { w.several = true }, func(w *world) {
		w.repository.commit("one", deployment("web", "app:1", 1))
		w.push("one")
		for _, name := range []string{"a", "b"} {
			if err := w.ask(name, "rightful"); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		w.stop()
		w.record = newMemory()
		w.start()
		if err := errors.Join(w.ask("a", "impostor", assumed), w.ask("b", "newcomer")); err != nil {
			t.Fatal(err)
		}
		w.machine.connect(w.inputs)
		time.Sleep(10 * time.Second)
		w.expectOwner("a", "rightful")
		w.expectOwner("b", "newcomer")
	})
}

// TestTheNewestLedgerTellsAboutMachines: the record is lost, and nodes come that
// kept the ledger at different times, in whatever order.
func TestTheNewestLedgerTellsAboutMachines(t *testing.T) {
	for name, oldFirst := range map[string]bool{"the old one first": true, "the newest first": false} {
		t.Run(name, func(t *testing.T) {
			runWith(t, func(w *world) { w.several = true }, func(w *world) {
				w.repository.commit("one", deployment("web", "app:1", 1))
				w.push("one")
				admit := func(err error) {
					t.Helper()
					if err != nil {
						t.Fatal(err)
					}
					time.Sleep(time.Second)
				}
				admit(w.ask("a", "first", uses(3)))
				old := slices.Collect(maps.Values(w.machine.ledger))
				admit(w.ask("b", "other", uses(3)))
				admit(w.ask("a", "second", replacing))
				w.stop()
				w.record, w.machine.owners = newMemory(), map[string]nodes.Member{}
				w.start()
				admit(w.ask("c", "third", uses(3))) // before anybody could say that it is the last
				kept := func() {
					info := nodes.Node{Name: "n2"}
					w.inputs <- Input{
						Node:   &nodes.NodeState{Node: info, Ready: true, Since: time.Now()},
						Report: &nodes.Report{Node: "n2", Complete: true, Info: &info, Ledger: old},
					}
				}
				if oldFirst {
					kept()
				}
				w.machine.connect(w.inputs)
				if !oldFirst {
					kept()
				}
				time.Sleep(10 * time.Second)
				w.expectOwner("a", "second")
				w.expectOwner("b", "other")
				if err := w.ask("d", "fourth", uses(3)); err == nil || !strings.Contains(err.Error(), "used up") {
					t.Errorf("the fourth use of a token for three: %v", err)
				}
				w.anew(w.record)
				w.expectOwner("a", "second")
			})
		})
	}
}

// TestALateLedgerTellsAboutMachines as one does that comes in time: the record is
// lost, and the node that keeps the ledger comes when all the others may have been.
func TestALateLedgerTellsAboutMachines(t *testing.T) {
	out := &desired.Object{
		Key: desired.Key{Kind: "Node", Name: "gone"}, Fingerprint: "out",
		Value: &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: "gone", Annotations: map[string]string{"tallyman.dev/revoked": "broken"}},
			Spec:       corev1.NodeSpec{Taints: []corev1.Taint{{Key: corev1.TaintNodeOutOfService, Effect: corev1.TaintEffectNoExecute}}},
		},
	}
	for name, late := range map[string]time.Duration{"in time": 0, "late": time.Minute} {
		t.Run(name, func(t *testing.T) {
			runWith(t, func(w *world) { w.several = true }, func(w *world) {
				web := deployment("web", "app:1", 1)
				w.repository.commit("one", web)
				w.repository.commit("two", web, out)
				w.repository.commit("three", web)
				w.leases(time.Minute)
				w.push("one")
				for _, n := range []string{"replaced", "gone", "silent"} {
					if err := w.ask(n, "first"); err != nil {
						t.Fatal(err)
					}
				}
				if err := w.ask("replaced", "second", replacing); err != nil {
					t.Fatal(err)
				}
				w.push("two")
				w.leases(6 * time.Second)
				w.push("three")
				time.Sleep(time.Second)
				w.stop()
				w.record, w.machine.owners = newMemory(), map[string]nodes.Member{}
				w.machine.expected, w.machine.longest = map[string]bool{}, 0
				w.start()
				w.head(Head{Revision: revision("three")}) // in force before the ledger is there
				time.Sleep(late)
				w.machine.connect(w.inputs)
				time.Sleep(20 * time.Second)
				synctest.Wait()
				if got := w.machine.longest; got != time.Minute {
					t.Errorf("leases of %v are waited for, want a minute", got)
				}
				if !w.machine.expected["silent"] || w.machine.expected["gone"] {
					t.Errorf("expected are %v", w.machine.expected)
				}
				var taken *nodes.TakenError
				var removed *nodes.RemovedError
				if err := w.ask("replaced", "first", assumed); !errors.As(err, &taken) {
					t.Errorf("the replaced machine with its certificate: %v", err)
				}
				if err := w.ask("replaced", "second", assumed); err != nil {
					t.Errorf("the machine in its place: %v", err)
				}
				if err := w.ask("gone", "first", assumed); !errors.As(err, &removed) {
					t.Errorf("the removed machine with its certificate: %v", err)
				}
				if err := w.ask("silent", "another"); !errors.As(err, &taken) {
					t.Errorf("another machine with a plain token: %v", err)
				}
				for _, n := range []string{"replaced", "gone", "silent"} {
					if _, kept := w.machine.ledger[decisionKey{kindNode, n}]; !kept {
						t.Errorf("node %s is missing in the ledger", n)
					}
				}
			})
		})
	}
}

// TestATokenReplacesOnceForAMachine: its agent shows the token again at every
// start, and must not throw out who has taken the name over since.
func TestATokenReplacesOnceForAMachine(t *testing.T) {
	for _, n := range []int{0, 1, 2} {
		runWith(t, func(w *world) { w.several = true }, func(w *world) {
			first, second := replacingWith("t1", n), replacingWith("t2", n)
			if err := errors.Join(w.ask("a", "old"), w.ask("a", "A", first), w.ask("a", "A", first), w.ask("a", "B", second)); err != nil {
				t.Fatal(err)
			}
			refused := func() {
				t.Helper()
				if err := w.ask("a", "A", first); err == nil || !strings.Contains(err.Error(), "tally token create --replace") {
					t.Errorf("%d uses: replaced again: %v", n, err)
				}
				w.expectOwner("a", "B")
			}
			refused()
			w.anew(w.record)
			refused()
			if err := w.ask("a", "A", replacingWith("t3", n)); err != nil {
				t.Errorf("%d uses: with another token: %v", n, err)
			}
		})
	}
}

// TestRevokedNodesAreHandedOut when the revision that says so is in force, and
// taken back with it.
func TestRevokedNodesAreHandedOut(t *testing.T) {
	node := func(name, revoked string) *desired.Object {
		return &desired.Object{
			Key: desired.Key{Kind: "Node", Name: name}, Fingerprint: name + revoked,
			Value: &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{"tallyman.dev/revoked": revoked}}},
		}
	}
	run(t, func(w *world) {
		web := deployment("web", "app:1", 1)
		w.repository.commit("one", web, node("a", "true"), node("b", "false"))
		w.repository.commit("two", web, node("a", "false"), node("b", "stolen"))
		for _, c := range []struct{ sha, want string }{{"one", "a"}, {"two", "b"}} {
			w.push(c.sha)
			w.machine.mu.Lock()
			got := strings.Join(w.machine.revoked, ",")
			w.machine.mu.Unlock()
			if got != c.want {
				t.Errorf("revision %s revokes %q, want %q", c.sha, got, c.want)
			}
		}
	})
}

// TestARemovedNodesNameIsForTokensAlone: no certificate of before counts, a
// restart does not wait for the node, and a token makes the name another's.
func TestARemovedNodesNameIsForTokensAlone(t *testing.T) {
	out := &desired.Object{
		Key: desired.Key{Kind: "Node", Name: "a"}, Fingerprint: "out",
		Value: &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: "a", Annotations: map[string]string{"tallyman.dev/revoked": "broken"}},
			Spec:       corev1.NodeSpec{Taints: []corev1.Taint{{Key: corev1.TaintNodeOutOfService, Effect: corev1.TaintEffectNoExecute}}},
		},
	}
	runWith(t, func(w *world) { w.several = true }, func(w *world) {
		refused := func(when string) {
			t.Helper()
			var gone *nodes.RemovedError
			if err := w.ask("a", "first", assumed); !errors.As(err, &gone) {
				t.Errorf("%s: %v", when, err)
			}
		}
		web := deployment("web", "app:1", 1)
		w.repository.commit("one", web)
		w.repository.commit("two", web, out)
		w.repository.commit("three", web)
		w.push("one")
		if err := w.ask("a", "first"); err != nil {
			t.Fatal(err)
		}
		w.push("two")
		refused("removed")
		w.push("three")
		refused("no longer revoked")
		began := time.Now()
		w.stop()
		w.start()
		w.machine.connect(w.inputs)
		synctest.Wait()
		if w.inForce() != "three" || !time.Now().Equal(began) {
			t.Errorf("the start waited for a removed node: in force %q", w.inForce())
		}
		refused("after a restart")
		if err := w.ask("a", "second"); err != nil {
			t.Errorf("with a token: %v", err)
		}
		w.expectOwner("a", "second")
		if m := w.machine.owners["a"]; m.Removed {
			t.Error("the new node counts as removed")
		}
	})
}

// TestTheServersOwnMachineComesBack: nobody admits it.
func TestTheServersOwnMachineComesBack(t *testing.T) {
	node := &desired.Object{
		Key: desired.Key{Kind: "Node", Name: "n1"}, Fingerprint: "out",
		Value: &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: "n1", Annotations: map[string]string{"tallyman.dev/revoked": ""}},
			Spec:       corev1.NodeSpec{Taints: []corev1.Taint{{Key: corev1.TaintNodeOutOfService, Effect: corev1.TaintEffectNoExecute}}},
		},
	}
	run(t, func(w *world) {
		web := deployment("web", "app:1", 1)
		w.repository.commit("one", web, node)
		w.repository.commit("two", web)
		w.push("one")
		w.inputs <- Input{Node: &nodes.NodeState{Node: nodes.Node{Name: "n1"}, Since: time.Now(), Reason: "revoked"}}
		synctest.Wait()
		if m := w.machine.owners["n1"]; !m.Removed {
			t.Fatal("not removed")
		}
		away := maps.Clone(w.machine.ledger)
		w.push("two")
		w.machine.connect(w.inputs)
		synctest.Wait()
		if m := w.machine.owners["n1"]; m.Removed || len(w.Overview().Nodes) != 1 {
			t.Errorf("%+v, nodes %v", m, w.Overview().Nodes)
		}
		w.anew(w.record)
		w.machine.mu.Lock()
		w.machine.ledger = away
		w.machine.mu.Unlock()
		w.machine.connect(w.inputs)
		synctest.Wait()
		if m := w.machine.owners["n1"]; m.Removed {
			t.Error("removed again by an older ledger")
		}
	})
}
