package planner

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner/place"
	"github.com/tallyman-dev/tallyman/planner/route"
	"github.com/tallyman-dev/tallyman/planner/workload"
)

// The kinds of decisions. Their JSON is read by later versions: fields may be
// added, never renamed.
const (
	kindOfPod       = nodes.PodDecision
	kindOfTemplate  = "template"
	kindOfSet       = "replicaset"
	kindOfWorkload  = "workload"
	kindOfLease     = "service"
	kindOfJob       = "job"
	kindOfCronJob   = "cronjob"
	kindOfForce     = "inforce"
	kindOfInventory = "inventory"
	kindOfNetwork   = "network"
	kindOfClaim     = "claim"
	kindOfVolume    = "volume"
	kindOfScale     = "scale"
	kindOfSnapshot  = "volumesnapshot"
	kindOfMachine   = "machine"
)

// theOne is the key of kinds that have a single decision.
const theOne = "cluster"

type podRecord struct {
	nodes.Pod
	Leaving string `json:"leaving,omitempty"`
	// Aim is the one node that a pod without a node is for.
	Aim    string   `json:"aim,omitempty"`
	Lost   lostness `json:"lost,omitempty"`
	Fenced bool     `json:"fenced,omitempty"`
	// Unproven: see pod.
	Unproven bool `json:"unproven,omitempty"`
}

type workloadRecord struct {
	Key       desired.Key `json:"key"`
	UID       string      `json:"uid"`
	Created   time.Time   `json:"created"`
	Counter   uint64      `json:"counter"`
	ScaledMax int         `json:"scaled_max,omitempty"`
	Revised   time.Time   `json:"revised,omitzero"`
	Stable    string      `json:"stable,omitempty"`
	Proven    string      `json:"proven,omitempty"`

	Holders map[int]string `json:"holders,omitempty"`

	Failures map[string]workload.Failures `json:"failures,omitempty"`
}

type setRecord struct {
	Workload desired.Key `json:"workload"`
	Hash     string      `json:"hash"`
	Content  string      `json:"content,omitempty"`
	Revision int         `json:"revision"`
	Since    time.Time   `json:"since"`
	Complete bool        `json:"complete,omitempty"`
}

type templateRecord struct {
	Workload desired.Key     `json:"workload"`
	Template *nodes.Template `json:"template"`
}

type leaseRecord struct {
	Key   desired.Key `json:"key"`
	Lease route.Lease `json:"lease"`
}

type inventoryRecord struct {
	Key desired.Key `json:"key"`
	// Mark changes with the object and says nothing about it.
	Mark string `json:"mark"`
}

func setKey(workload desired.Key, hash string) string { return keyText(workload) + "/" + hash }

func (st *step) recordPod(p *pod) {
	st.decide(kindOfPod, string(p.UID), podRecord{Pod: *p.Pod, Leaving: p.leaving, Aim: p.aim, Lost: p.lost, Fenced: p.fenced, Unproven: p.unproven})
}

func (st *step) recordWorkload(g *group) {
	st.decide(kindOfWorkload, keyText(g.key), workloadRecord{
		Key: g.key, UID: g.uid, Created: g.created, Counter: g.counter, ScaledMax: g.scaledMax, Revised: g.revised,
		Stable: g.stable, Proven: g.proven, Failures: g.failures, Holders: g.holders,
	})
}

func (st *step) recordSet(g *group, s *set) {
	st.decide(kindOfSet, setKey(g.key, s.hash), setRecord{
		Workload: g.key, Hash: s.hash, Content: s.content, Revision: s.revision, Since: s.since, Complete: s.complete,
	})
}

func (st *step) recordTemplate(g *group, s *set) {
	st.decide(kindOfTemplate, setKey(g.key, s.hash), templateRecord{Workload: g.key, Template: s.template})
}

func (st *step) forgetSet(g *group, s *set) {
	st.decide(kindOfSet, setKey(g.key, s.hash), nil)
	st.decide(kindOfTemplate, setKey(g.key, s.hash), nil)
}

// restored is a record taken apart. A decision that can't be read is left out:
// what it was about is then adopted from the nodes or decided again.
type restored struct {
	force     *inForce
	network   *desired.Network
	inventory map[desired.Key]string
	workloads []workloadRecord
	sets      []setRecord
	templates map[string]*nodes.Template
	pods      []podRecord
	leases    []leaseRecord
	claims    []claimRecord
	volumes   []volumeRecord
	snapshots []snapshotRecord
	jobs      []jobRecord
	cronJobs  []cronRecord
	sizes     []size
	machines  []machineRecord
}

func parseRecord(decisions []nodes.Decision) *restored {
	r := &restored{templates: map[string]*nodes.Template{}, inventory: map[desired.Key]string{}}
	for _, d := range decisions {
		switch d.Kind {
		case kindOfForce:
			r.force = parse[inForce](d)
		case kindOfNetwork:
			r.network = parse[desired.Network](d)
			if n := r.network; n != nil && n.Overlay == "" {
				n.Overlay = desired.DefaultSettings().Network.Overlay // recorded before there was a choice
			}
		case kindOfInventory:
			if v := parse[inventoryRecord](d); v != nil {
				r.inventory[v.Key] = v.Mark
			}
		case kindOfWorkload:
			r.workloads = appendParsed(r.workloads, d)
		case kindOfSet:
			r.sets = appendParsed(r.sets, d)
		case kindOfTemplate:
			if v := parse[templateRecord](d); v != nil && v.Template != nil {
				r.templates[d.Key] = v.Template
			}
		case kindOfPod:
			r.pods = appendParsed(r.pods, d)
		case kindOfJob:
			r.jobs = appendParsed(r.jobs, d)
		case kindOfCronJob:
			r.cronJobs = appendParsed(r.cronJobs, d)
		case kindOfScale:
			r.sizes = appendParsed(r.sizes, d)
		case kindOfLease:
			r.leases = appendParsed(r.leases, d)
		case kindOfClaim:
			r.claims = appendParsed(r.claims, d)
		case kindOfVolume:
			r.volumes = appendParsed(r.volumes, d)
		case kindOfMachine:
			r.machines = appendParsed(r.machines, d)
		case kindOfSnapshot:
			r.snapshots = appendParsed(r.snapshots, d)
		}
	}
	return r
}

func parse[T any](d nodes.Decision) *T {
	v := new(T)
	if len(d.Value) == 0 || json.Unmarshal(d.Value, v) != nil {
		return nil
	}
	return v
}

func appendParsed[T any](list []T, d nodes.Decision) []T {
	if v := parse[T](d); v != nil {
		return append(list, *v)
	}
	return list
}

// restore takes over a record. It comes before anything else is known.
func (st *step) restore(decisions []nodes.Decision) {
	if len(decisions) == 0 {
		return
	}
	st.recorded, st.informed = true, true
	st.takeOver(parseRecord(decisions))
}

// takeOver fills the state from a record, or from a node's ledger when the
// record was lost.
func (st *step) takeOver(r *restored) {
	if r.force != nil {
		st.force = *r.force
	}
	if r.network != nil {
		st.network = *r.network
	}
	if (st.snapshot == nil || st.blind) && len(r.inventory) > 0 {
		st.inventory = r.inventory
	}
	for i := range r.machines {
		st.restoreMachine(&r.machines[i])
	}
	for _, w := range r.workloads {
		g := st.groupFor(w.Key)
		g.uid, g.created, g.counter, g.scaledMax = w.UID, w.Created, max(g.counter, w.Counter), w.ScaledMax
		g.revised, g.stable, g.proven, g.failures, g.holders = w.Revised, w.Stable, w.Proven, w.Failures, w.Holders
		st.recordable(g)
	}
	slices.SortFunc(r.sets, func(a, b setRecord) int { return a.Revision - b.Revision })
	for _, v := range r.sets {
		st.restoreSet(v, r.templates[setKey(v.Workload, v.Hash)])
	}
	for i := range r.jobs {
		st.restoreJob(&r.jobs[i])
	}
	for i := range r.cronJobs {
		st.restoreCron(&r.cronJobs[i])
	}
	for i := range r.pods {
		st.restorePod(&r.pods[i])
	}
	for i := range r.sizes {
		st.sizes = st.sizes.Set(r.sizes[i].Target, &r.sizes[i])
	}
	for _, l := range r.leases {
		st.holdLease(&service{key: l.Key, lease: l.Lease})
	}
	for i := range r.volumes {
		st.restoreVolume(&r.volumes[i])
	}
	for i := range r.claims {
		st.restoreClaim(&r.claims[i])
	}
	for i := range r.snapshots {
		st.restoreSnapshot(&r.snapshots[i])
	}
	for i := range r.volumes {
		st.mend(r.volumes[i].Name)
	}
}

// recordable marks a group as one to look at once there is a snapshot.
func (st *step) recordable(g *group) {
	g.stale = true
	st.dirtyGroups[g.key] = true
	st.touched[g.key] = true
}

// groupFor is the group with this key, made when there is none.
func (st *step) groupFor(k desired.Key) *group {
	if g := st.edit(k); g != nil {
		return g
	}
	g := &group{key: k, created: st.now, stale: true, uid: newUID(st.config.SecretKey, keyText(k), st.force.Revision.SHA, st.now)}
	if st.snapshot != nil {
		g.object = st.sized(st.snapshot.Get(k))
	}
	return st.own(g)
}

func (st *step) restoreSet(v setRecord, t *nodes.Template) {
	g := st.groupFor(v.Workload)
	if t == nil {
		return
	}
	if known := g.set(v.Hash); known != nil {
		changed := *known
		changed.content, changed.revision, changed.since, changed.complete = v.Content, v.Revision, v.Since, v.Complete
		st.swapSet(g, &changed)
		slices.SortStableFunc(g.sets, compareSets)
		return
	}
	st.addSet(g, &set{
		hash: v.Hash, template: t, request: place.Compile(profileOf(g.key), g.key.Namespace, t), refs: references(g.key.Namespace, &t.Spec),
		content: v.Content, revision: v.Revision, since: v.Since, complete: v.Complete,
	})
}

// swapSet replaces a set and points its pods to the new value.
func (st *step) swapSet(g *group, s *set) {
	g.replaceSet(s)
	for i, p := range g.pods {
		if p.set.hash == s.hash {
			clone := *p
			clone.set = s
			g.pods[i] = &clone
		}
	}
}

// addSet keeps sets ordered by revision and indexes the labels of their pods.
func (st *step) addSet(g *group, s *set) {
	g.sets = append(slices.Clone(g.sets), s)
	slices.SortStableFunc(g.sets, compareSets)
	for k, v := range s.template.Labels {
		st.groupLabels.add(pair{g.key.Namespace, k, v}, g.key)
	}
	st.mind(g, s.request)
	if particular(s.request) {
		st.particular++
	}
}

func (st *step) restorePod(r *podRecord) {
	g := st.groupFor(r.Workload)
	s := g.set(r.TemplateHash)
	if s == nil {
		return
	}
	if _, known := st.pods.Get(r.UID); known {
		return
	}
	n := r.Pod
	n.Template = s.template
	st.share(&n)
	if n.Node != "" && len(n.Seal) == 0 {
		n.Seal = st.config.sealPod(&n, n.Node) // recorded by an earlier version
	}
	p := &pod{Pod: &n, set: s, leaving: r.Leaving, aim: r.Aim, lost: r.Lost, fenced: r.Fenced, unproven: r.Unproven}
	st.insertPod(g, p)
	st.wait(p)
	if p.leaving != "" && p.Stop == nil && p.lost == "" {
		st.draining = st.draining.Set(p.UID, struct{}{})
	}
}

// share has a pod that was read hold the same texts as others: alone they
// would be most of what it weighs.
func (st *step) share(p *nodes.Pod) {
	for _, text := range []*string{
		&p.Namespace, &p.TemplateHash, &p.Node, &p.Revision,
		&p.Owner.Group, &p.Owner.Kind, &p.Owner.Namespace, &p.Owner.Name,
		&p.Workload.Group, &p.Workload.Kind, &p.Workload.Namespace, &p.Workload.Name,
	} {
		if known, ok := st.texts[*text]; ok {
			*text = known
		} else {
			st.texts[*text] = *text
		}
	}
}

// insertPod puts a pod into its group and onto its node.
func (st *step) insertPod(g *group, p *pod) {
	i, found := g.find(p.Incarnation)
	if found {
		return
	}
	p.request = p.set.request
	if len(p.Labels) > 0 {
		if p.request = p.request.WithOwn(p.Labels); particular(p.set.request) {
			st.mind(g, p.request)
		}
	}
	for k, v := range p.Labels {
		st.groupLabels.add(pair{g.key.Namespace, k, v}, g.key)
	}
	p.claims = claimsOf(p.Pod)
	if p.lost != certain {
		st.use(p)
	}
	g.pods = slices.Insert(g.pods, i, p)
	g.counter = max(g.counter, p.Incarnation)
	st.pods = st.pods.Set(p.UID, podRef{g.key, p.Incarnation})
	st.dirtyGroups[g.key] = true
	st.touched[g.key] = true
	if p.Node != "" {
		st.bindTo(p)
		st.stirred(p.request)
	}
}

// wait notes a pod without a node.
func (st *step) wait(p *pod) {
	if p.Node == "" {
		st.pending = st.pending.Set(waiterOf(p), struct{}{})
	}
}

func compareSets(a, b *set) int { return a.revision - b.revision }
