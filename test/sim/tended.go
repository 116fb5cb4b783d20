package sim

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tallyman-dev/tallyman/desired"
)

// tended is what clusters have that somebody looks after: Git says things about
// nodes, by what the machines are like, whatever else is reverted. And their
// keepers die, or stand still with their agents. It draws from a source of chance
// of its own.
type tended struct {
	rng *rand.Rand
	// words are what Git is to say about nodes.
	words map[string]word
}

// word is what Git says about one node.
type word struct {
	// cordoned nodes get no new pods, drained ones lose those that they have, and
	// dead ones run nothing.
	cordoned, drained, dead bool
}

const (
	kindNode = "Node"
	// drainTaint is what a drained node has.
	drainTaint = "example.org/drained"
	// drainMercy is after how long a drain waits for nothing but budgets.
	drainMercy = 10 * time.Minute
)

func drawTended(seed uint64) *tended {
	return &tended{rng: rand.New(rand.NewPCG(seed, 0x7e4d)), words: map[string]word{}}
}

func nodeKey(name string) desired.Key { return desired.Key{Kind: kindNode, Name: name} }

func nodeObject(name string, v word) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{Unschedulable: v.cordoned}}
	if v.drained {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: drainTaint, Effect: corev1.TaintEffectNoExecute})
	}
	if v.dead {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: corev1.TaintNodeOutOfService, Value: "nodeshutdown", Effect: corev1.TaintEffectNoExecute})
	}
	return n
}

func (v word) String() string {
	var says []string
	for what, is := range map[string]bool{"cordoned": v.cordoned, "drained": v.drained, "dead": v.dead} {
		if is {
			says = append(says, what)
		}
	}
	slices.Sort(says)
	return strings.Join(says, " and ")
}

// say has a revision say about nodes what is to be said today.
func (t *tended) say(i *intent) {
	if t != nil {
		i.words = maps.Clone(t.words)
	}
}

// tend lets somebody say something about a node, or a keeper suffer.
func (w *world) tend() error {
	t := w.tended
	m := pick(t.rng, w.nodes...)
	if w.fleet.fenced && t.rng.IntN(2) == 0 {
		return w.hurtKeeper(m)
	}
	v := t.words[m.name]
	switch n := t.rng.IntN(10); {
	case n < 2:
		v.cordoned = !v.cordoned
	case n < 6:
		v.drained = !v.drained
	case m.off:
		v.dead = !v.dead
	default:
		m.powerOff()
		w.pause()
		v.dead = true
	}
	w.tell(m, v)
	return nil
}

// tell pushes what is to be said about a machine.
func (w *world) tell(m *machine, v word) {
	if v == (word{}) {
		delete(w.tended.words, m.name)
	} else {
		w.tended.words[m.name] = v
	}
	i := w.repo.head().intent.clone()
	w.pushConfirmed(i, fmt.Sprintf("%s is %q", m.name, v))
	switch {
	case v.dead:
		m.grave, m.buried = nil, true
	case m.buried && m.grave == nil:
		m.grave = w.repo.head()
	}
}

// mayRise reports whether a machine may be switched on: one that was declared dead
// not before it is in force that it isn't, and then without what it ran. That is
// what whoever declares it promises.
func (m *machine) mayRise() (bool, error) {
	if !m.buried {
		return true, nil
	}
	if truth := m.world.witness.truth(); m.grave == nil || truth == nil || truth.revision.SHA < m.grave.revision.SHA {
		m.world.note("machine %s stays off: it is declared dead", m.name)
		return false, nil
	}
	m.buried, m.grave = false, nil
	m.runtime.wipe()
	return true, m.loseStore()
}

// bury waits until what is declared dead counts as gone, and takes back what was
// said of all nodes but a few that converge all the same.
func (w *world) bury() error {
	if w.tended == nil {
		return nil
	}
	if err := w.mournsTheDead(); err != nil {
		return err
	}
	w.tended.words = w.lastWords()
	for try := range 30 {
		if try%5 == 0 {
			w.pushConfirmed(w.repo.head().intent.clone(), fmt.Sprintf("in the end %v", w.tended.words))
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if risen, err := w.rise(); risen || err != nil {
			return err
		}
	}
	return violated(2, "the faults are over, and what Git says of nodes in the end is not in force")
}

// rise switches the dead on again, and reports whether all are and what is said
// of nodes is in force.
func (w *world) rise() (all bool, err error) {
	truth := w.witness.truth()
	all = truth != nil && maps.Equal(truth.intent.words, w.tended.words)
	for _, m := range w.nodes {
		if m.buried {
			m.grave = cmp.Or(m.grave, w.repo.head())
			err = errors.Join(err, m.powerOn())
		}
		all = all && !m.buried
	}
	return all, err
}

// lastWords are those that stay said: one node is drained or cordoned to the end
// where all pods have room elsewhere.
func (w *world) lastWords() map[string]word {
	last := map[string]word{}
	if len(w.nodes) < 3 || w.shape.cpu == 1 {
		return last
	}
	for _, v := range w.repo.head().intent.workloads {
		if c := v.company; c.zone != "" || c.fast || c.together || c.port || c.apart == must || c.spread == must {
			return last
		}
	}
	for _, m := range w.nodes {
		if v := w.tended.words[m.name]; (v.cordoned || v.drained) && !v.dead {
			last[m.name] = v
			break
		}
	}
	return last
}

// mournsTheDead: invariant 2. What Git declares dead has nothing that anybody
// waits for, soon after all others are well.
func (w *world) mournsTheDead() error {
	left := ""
	for range 60 {
		if left = w.witness.unmourned(); left == "" {
			return nil
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if err := w.witness.violation(); err != nil {
			return err
		}
	}
	return violated(2, "pod %s, which Git declares dead, counts as running", left)
}

// unmourned is a pod of a dead node that has not been given up.
func (x *witness) unmourned() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.force == nil || x.known.IsZero() {
		return ""
	}
	for _, m := range x.world.nodes {
		if !m.buried || !x.force.intent.words[m.name].dead {
			continue
		}
		for _, p := range x.last.pods {
			if p.node == m.name && !p.stopping && !p.done && p.workload.Kind != kindDaemonSet {
				return p.namespace + "/" + p.name + " on " + m.name
			}
		}
	}
	return ""
}

// drainedInTheEnd: invariant 2. A drained node has only pods that tolerate it.
func (w *world) drainedInTheEnd(i *intent) error {
	for _, m := range w.nodes {
		if !i.words[m.name].drained {
			continue
		}
		for _, c := range m.runtime.running() {
			if k := workloadOf(c); k.Kind != kindDaemonSet {
				return violated(2, "container %s of %s runs on %s, which is drained", c.ID, k, m.name)
			}
		}
	}
	return nil
}

// noteWords keeps since when nodes are drained, by what is in force.
func (x *witness) noteWords(st *step) {
	if st.intent == nil {
		clear(x.drained)
		return
	}
	maps.DeleteFunc(x.drained, func(name string, _ time.Time) bool { return !st.intent.words[name].evicts() })
	for name, v := range st.intent.words {
		if _, known := x.drained[name]; v.evicts() && !known {
			x.drained[name] = st.now
		}
	}
}

// evicts reports whether pods leave the node, also while it answers.
func (v word) evicts() bool { return v.drained || v.dead }

// leavesItsNode reports whether a pod goes because its node is drained.
func (s *step) leavesItsNode(p podView) bool {
	return s.intent != nil && s.intent.words[p.node].evicts() && p.workload.Kind != kindDaemonSet
}

// mercyIsOver reports whether a drain that takes a pod from its node waits for no
// rollout: it has waited long enough, or no node has room for another.
func (s *step) mercyIsOver(p podView) bool {
	if !s.leavesItsNode(p) {
		return false
	}
	if since, known := s.drained[p.node]; known && !s.now.Before(since.Add(drainMercy)) {
		return true
	}
	for _, v := range []*view{s.before, s.after} {
		for _, o := range v.pods {
			if o.workload == p.workload && o.node == "" {
				return true
			}
		}
	}
	return p.workload.Kind == kindStatefulSet // see drainsOneByOne
}

// drainsOneByOne: invariant 4. A drain takes no pod of a StatefulSet while another
// one, on a node where it may stay, is new and not up yet.
func drainsOneByOne(s *step) (err error) {
	for uid, p := range s.after.pods {
		b, known := s.before.pods[uid]
		since, drained := s.drained[p.node]
		w, wanted := s.intentOf(p.workload)
		if !known || !p.stopping || b.stopping || !drained || !wanted || p.workload.Kind != kindStatefulSet || !s.after.nodes[p.node].Ready ||
			p.surplus(&w) || p.hash != s.after.templates[p.workload] || p.hash != s.before.templates[p.workload] || !s.now.Before(since.Add(drainMercy)) {
			continue
		}
		for other, o := range s.before.pods {
			if other == uid || o.workload != p.workload || o.done || o.node == "" || !s.after.nodes[o.node].Ready || !s.before.nodes[o.node].Ready {
				continue
			}
			made := s.decided[other]
			young := made != nil && s.now.Before(made.Created.Add(drainMercy))
			if _, goes := s.drained[o.node]; !goes && young && !o.stopping && !o.ready && !s.after.pods[other].ready {
				err = violated(4, "pod %s of %s is taken from %s, which is drained, while pod %s is not up", p.name, p.workload, p.node, o.name)
			}
		}
	}
	return err
}

// isShunned says why no new pod may be bound to a node; empty when one may.
func (v word) isShunned(k desired.Key) string {
	switch {
	case k.Kind == kindDaemonSet:
		return ""
	case v.cordoned || v.drained || v.dead:
		return v.String()
	}
	return ""
}
