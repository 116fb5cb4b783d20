package planner

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner/workload"
)

// alphabet has no vowels and nothing that looks like another sign, as
// Kubernetes' generated names.
const alphabet = "bcdfghjklmnpqrstvwxz2456789"

func compareUID(a, b nodes.UID) int { return strings.Compare(string(a), string(b)) }

// digest is a keyed hash of some texts, each ended so that none runs into the next.
func digest(key []byte, texts ...string) []byte {
	h := hmac.New(sha256.New, key)
	for _, t := range texts {
		var size [8]byte
		binary.BigEndian.PutUint64(size[:], uint64(len(t)))
		h.Write(size[:])
		h.Write([]byte(t))
	}
	return h.Sum(nil)
}

// spell writes a hash as a name of n letters.
func spell(sum []byte, n int) string {
	v := binary.BigEndian.Uint64(sum)
	letters := make([]byte, n)
	for i := range letters {
		letters[i] = alphabet[v%uint64(len(alphabet))]
		v /= uint64(len(alphabet))
	}
	return string(letters)
}

// newUID gives a workload an identity that no later one of the same name shares.
func newUID(key []byte, name, revision string, now time.Time) string {
	return uuid(digest(key, "workload", name, revision, now.UTC().Format(time.RFC3339Nano)))
}

// uuid writes a hash in the form of a version 8 UUID.
func uuid(sum []byte) string {
	b := slices.Clone(sum[:16])
	b[6] = b[6]&0x0f | 0x80
	b[8] = b[8]&0x3f | 0x80
	h := hex.EncodeToString(b)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// create decides on one more pod of a set.
func (st *step) create(g *group, s *set, c *workload.Create) {
	var id []byte
	name := c.Name
	for {
		g.counter++
		id = digest(st.config.SecretKey, "pod", g.uid, s.hash, fmt.Sprint(g.counter))
		if c.Name != "" {
			break
		}
		name = namePrefix(g.owner(s).Name, c.Ordinal) + spell(id[16:], 5)
		if !st.nameTaken(g, name) {
			break
		}
	}
	p := &pod{set: s, aim: c.Node, Pod: &nodes.Pod{
		UID:          nodes.UID(uuid(id)),
		Namespace:    g.key.Namespace,
		Name:         name,
		Owner:        g.owner(s),
		Workload:     g.key,
		Incarnation:  g.counter,
		Ordinal:      c.Ordinal,
		Template:     s.template,
		TemplateHash: s.hash,
		Revision:     st.force.Revision.SHA,
		Created:      st.now,
	}}
	g.kind().identify(g, p.Pod)
	st.insertPod(g, p)
	st.fresh = append(st.fresh, p.UID)
	st.recordPod(p)
	if !p.bare() {
		st.event(p.Owner, false, "SuccessfulCreate", "Created pod: "+name)
	}
}

// namePrefix is what made-up names begin with, cut as Kubernetes cuts it.
func namePrefix(owner string, ordinal int) string {
	const most = 58
	end := "-"
	if ordinal != workload.NoOrdinal {
		end = "-" + strconv.Itoa(ordinal) + "-"
	}
	return owner[:min(len(owner), most-len(end))] + end
}

func (st *step) nameTaken(g *group, name string) bool {
	if slices.ContainsFunc(g.pods, func(p *pod) bool { return p.Name == name }) {
		return true
	}
	_, bare := st.groups.Get(desired.Key{Kind: kindPod, Namespace: g.key.Namespace, Name: name})
	return bare
}

// bindTo puts a pod onto the node that it names.
func (st *step) bindTo(p *pod) {
	n := st.nodeFor(p.Node)
	n.pods = n.pods.Set(p.UID, p.Pod)
	for _, k := range p.set.refs {
		count, _ := n.configs.Get(k)
		n.configs = n.configs.Set(k, count+1)
	}
	n.load = n.load.With(p.request)
	st.nodes = st.nodes.Set(n.Name, n)
	st.dirtyNodes[n.Name] = true
}

// unload gives back what a pod requested: it has ended or is gone.
func (st *step) unload(p *pod) {
	n := st.nodeFor(p.Node)
	n.load = n.load.Without(p.request)
	st.nodes = st.nodes.Set(n.Name, n)
	st.stir.rooms[p.Node] = true
	st.stir.claims = st.stir.claims || len(p.claims) > 0
	st.stirred(p.request)
}

// leave begins the end of a pod: out of the routes first, stopped after.
func (st *step) leave(uid nodes.UID, reason string) {
	_, p := st.pod(uid)
	if p == nil || p.leaving != "" || p.Stop != nil {
		return
	}
	routed := st.mayBeRouted(p)
	p = st.change(uid, func(p *pod) { p.leaving = reason })
	if p.Node != "" {
		st.stirred(p.request)
	}
	if !p.bare() {
		st.event(p.Owner, false, "SuccessfulDelete", "Deleted pod: "+p.Name)
	}
	st.dirtyServicesOf(p)
	switch {
	case p.Node == "":
		st.forget(uid, reason)
	case routed:
		st.draining = st.draining.Set(uid, struct{}{})
		st.recordPod(p)
		st.act("drain", p.Key(), p.Node, reason)
	default:
		st.stop(uid)
	}
}

// stop tells a pod's node to end it.
func (st *step) stop(uid nodes.UID) {
	p := st.change(uid, func(p *pod) {
		n := *p.Pod
		n.Stop = &nodes.Stop{Grace: grace(p.Template), Reason: p.leaving}
		p.Pod = &n
	})
	st.draining = st.draining.Delete(uid)
	n := st.nodeFor(p.Node)
	n.pods = n.pods.Set(uid, p.Pod)
	st.nodes = st.nodes.Set(n.Name, n)
	st.dirtyNodes[n.Name] = true
	st.recordPod(p)
	st.act("stop", p.Key(), p.Node, p.leaving)
}

func grace(t *nodes.Template) time.Duration {
	if s := t.Spec.TerminationGracePeriodSeconds; s != nil {
		return time.Duration(max(0, *s)) * time.Second
	}
	return 30 * time.Second
}

// forget drops a pod of which nothing is left.
func (st *step) forget(uid nodes.UID, reason string) {
	g, p := st.pod(uid)
	if p == nil {
		return
	}
	st.dirtyServicesOf(p)
	g = st.edit(g.key)
	i, _ := g.find(p.Incarnation)
	g.pods = slices.Delete(g.pods, i, i+1)
	st.unindexPod(g, p)
	st.leaveClaims(p)
	st.pods = st.pods.Delete(uid)
	st.forgetUsage(uid)
	st.pending = st.pending.Delete(waiterOf(p))
	st.draining = st.draining.Delete(uid)
	st.dirtyGroups[g.key] = true
	st.touched[g.key] = true
	st.decide(kindOfPod, string(uid), nil)
	st.act("forget", p.Key(), p.Node, reason)
	if p.Node != "" {
		st.unbind(p)
	}
	if g.key.Kind == kindStatefulSet {
		st.freeName(p.Key())
	}
}

func (st *step) unbind(p *pod) {
	if !p.released {
		st.unload(p)
	}
	n := st.nodeFor(p.Node)
	n.pods = n.pods.Delete(p.UID)
	if p.departs != "" && p.Workload.Kind != kindDaemonSet {
		n.departed++
	}
	for _, k := range p.set.refs {
		if count, _ := n.configs.Get(k); count > 1 {
			n.configs = n.configs.Set(k, count-1)
		} else {
			n.configs = n.configs.Delete(k)
		}
	}
	st.nodes = st.nodes.Set(n.Name, n)
	st.dirtyNodes[n.Name] = true
}
