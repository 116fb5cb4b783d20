package planner

import (
	"encoding/hex"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	nodev1 "k8s.io/api/node/v1"

	"github.com/tallyman-dev/tallyman/desired"
)

// submit puts a revision in force, unless the guard holds it.
func (st *step) submit(next *desired.Snapshot, source string) {
	if next == nil {
		return
	}
	c := st.compare(next)
	if source == "" {
		source = st.force.Source
	}
	hold := st.guard(c, source)
	st.plan.Difference = st.difference(c)
	st.plan.Hold, st.held = hold, hold
	if hold != nil {
		return
	}
	st.differences = nil
	for _, d := range st.plan.Difference {
		st.differences = append(st.differences, d.String())
	}
	st.apply(c, source)
}

// comparison is a revision beside what is in force: a snapshot, or after a
// start only the inventory that the record has of it.
type comparison struct {
	old, next *desired.Snapshot
	inventory map[desired.Key]string
	// changed are the keys that differ or may differ, those that go included;
	// gone are those that next does not have.
	changed, gone []desired.Key
	// lost are the claims and snapshots whose data goes with removed nodes.
	lost []desired.Key
}

func (st *step) compare(next *desired.Snapshot) *comparison {
	c := &comparison{old: st.snapshot, next: next, changed: desired.Changed(st.snapshot, next)}
	if c.old == nil {
		c.inventory = st.inventory
		for k := range c.inventory {
			if next.Get(k) == nil {
				c.changed = append(c.changed, k)
			}
		}
		slices.SortFunc(c.changed, desired.Key.Compare)
	}
	for _, k := range c.changed {
		if next.Get(k) == nil {
			c.gone = append(c.gone, k)
		}
	}
	c.lost = st.lostWith(c)
	return c
}

// had reports whether an object is in force.
func (c *comparison) had(k desired.Key) bool {
	if c.old != nil {
		return c.old.Get(k) != nil
	}
	_, ok := c.inventory[k]
	return ok
}

// size counts the objects in force.
func (c *comparison) size() int {
	if c.old != nil {
		return c.old.Len()
	}
	return len(c.inventory)
}

// sizeOf counts the objects in force of one kind.
func (c *comparison) sizeOf(kind string) int {
	if c.old != nil {
		return len(c.old.Kind(kind))
	}
	n := 0
	for k := range c.inventory {
		if k.Kind == kind {
			n++
		}
	}
	return n
}

// mark tells a change of an object without telling its content.
func (s *State) mark(o *desired.Object) string {
	return hex.EncodeToString(digest(s.config.SecretKey, "mark", o.Fingerprint)[:6])
}

func (st *step) apply(c *comparison, source string) {
	next := c.next
	st.snapshot, st.inventory = next, nil
	st.blind = c.old == nil && !st.informed
	if next.Revision().SHA != st.force.Revision.SHA || source != st.force.Source {
		st.force = inForce{Revision: next.Revision(), Source: source, Since: st.now}
		st.decide(kindOfForce, theOne, st.force)
	}
	if !st.network.Services.IsValid() {
		st.network = next.Settings().Network
		st.decide(kindOfNetwork, theOne, st.network)
	}
	st.applyOverlay(next.Settings().Network.Overlay)
	if c.old == nil {
		st.outcasts = newOutcasts()
	}
	var altered []desired.Key
	for _, k := range c.changed {
		if st.alters(c, k) {
			altered = append(altered, k)
		}
		st.keepInventory(c, k)
		st.applyConfig(k, next.Get(k))
	}
	st.applyAutoscalers(c)
	for _, k := range c.changed {
		st.applyObject(k, next.Get(k), c.old)
	}
	st.endNamespaces(c)
	st.storageDirty, st.lists = true, nil
	if c.old == nil {
		st.attach(next)
	}
	st.applyReaders(c.changed)
	st.applyFailover(c)
	st.revise(altered)
}

// applyOverlay takes in how packets travel between nodes. Unlike the cluster's
// addresses, which are fixed after first use, nothing that runs depends on it.
func (st *step) applyOverlay(overlay string) {
	if st.network.Overlay == overlay {
		return
	}
	st.network.Overlay = overlay
	st.decide(kindOfNetwork, theOne, st.network)
	for name := range entries(st.nodes) {
		st.dirtyNodes[name] = true
	}
}

// alters reports whether an object of the revision is new or not as it was.
func (st *step) alters(c *comparison, k desired.Key) bool {
	o := c.next.Get(k)
	return o != nil && (c.old != nil || c.inventory[k] != st.mark(o))
}

// revise notes what the revision answers for: the workloads and services that
// it alters, and the workloads that read what it alters.
func (st *step) revise(altered []desired.Key) {
	for _, k := range altered {
		if g, ok := st.groups.Get(k); ok {
			st.reviseGroup(g)
		} else if s, ok := st.services.Get(k); ok {
			clone := *s
			clone.since = st.now
			st.services = st.services.Set(k, &clone)
		}
	}
	read := onlyRead(altered)
	if len(read) == 0 {
		return
	}
	for _, g := range entries(st.groups) {
		if g.object != nil && !g.revised.Equal(st.now) && slices.ContainsFunc(read, g.reads) {
			st.reviseGroup(g)
		}
	}
}

func (st *step) reviseGroup(g *group) {
	g = st.edit(g.key)
	g.revised = st.now
	st.recordWorkload(g)
	st.dirtyGroups[g.key] = true
}

// onlyRead keeps what pods read when they are made: ConfigMaps, Secrets,
// CSIDrivers and RuntimeClasses.
func onlyRead(list []desired.Key) []desired.Key {
	return slices.DeleteFunc(slices.Clone(list), func(k desired.Key) bool { return !isConfig(k) && !isRuntimeClass(k) })
}

func isRuntimeClass(k desired.Key) bool {
	return k.Group == nodev1.GroupName && k.Kind == kindRuntimeClass
}

// keepInventory records one small decision for each object in force.
func (st *step) keepInventory(c *comparison, k desired.Key) {
	o := c.next.Get(k)
	if o == nil {
		st.decide(kindOfInventory, keyText(k), nil)
		return
	}
	if mark := st.mark(o); c.inventory[k] != mark {
		st.decide(kindOfInventory, keyText(k), inventoryRecord{Key: k, Mark: mark})
	}
}

// attach looks at everything once, after a start: groups and services that
// Git no longer has, and every node.
func (st *step) attach(next *desired.Snapshot) {
	for k := range keys(st.groups) {
		st.dirtyGroups[k] = true
	}
	for _, k := range slices.Collect(keys(st.services)) {
		if next.Get(k) == nil {
			st.dropService(k)
		}
	}
	for name := range keys(st.nodes) {
		st.dirtyNodes[name] = true
	}
	st.stir.all = true
}

func (st *step) applyConfig(k desired.Key, o *desired.Object) {
	if !isConfig(k) {
		return
	}
	if o == nil {
		st.configs = st.configs.Delete(k)
		return
	}
	st.configs = st.configs.Set(k, st.configOf(o))
}

func (st *step) applyObject(k desired.Key, o *desired.Object, old *desired.Snapshot) {
	switch {
	case isWorkload(k):
		st.applyWorkload(k, o)
	case k.Kind == kindService && k.Group == "":
		st.applyService(k, o)
	case k.Kind == "Endpoints" && k.Group == "":
		st.dirtyServices[serviceKey(k.Namespace, k.Name)] = true
	case k.Kind == "EndpointSlice":
		st.applySlice(o)
		if old != nil {
			st.applySlice(old.Get(k))
		}
	case k.Kind == kindNamespace:
		st.stir.all = true
	case k.Kind == kindNode && k.Group == "":
		st.applyMachine(k.Name)
		st.judgeAbsent(k.Name)
	}
}

func (st *step) applyWorkload(k desired.Key, o *desired.Object) {
	if o == nil {
		if g := st.edit(k); g != nil {
			g.object = nil
			st.dirtyGroups[k] = true
		}
		return
	}
	g := st.groupFor(k)
	st.unmake(g)
	g.object, g.stale = st.sized(o), true
	st.dirtyGroups[k] = true
	if g.counter == 0 && len(g.sets) == 0 {
		st.recordWorkload(g)
	}
}

func (st *step) applySlice(o *desired.Object) {
	if o == nil {
		return
	}
	if v, ok := o.Value.(*discoveryv1.EndpointSlice); ok {
		st.dirtyServices[serviceKey(v.Namespace, v.Labels[discoveryv1.LabelServiceName])] = true
	}
}

// applyReaders looks again at the workloads and nodes that read a changed
// ConfigMap, Secret, CSIDriver or RuntimeClass.
func (st *step) applyReaders(changed []desired.Key) {
	read := onlyRead(changed)
	if len(read) == 0 {
		return
	}
	for k, g := range entries(st.groups) {
		if g.object != nil && slices.ContainsFunc(read, g.reads) {
			st.edit(k).stale = true
			st.dirtyGroups[k] = true
		}
	}
	for name, n := range entries(st.nodes) {
		if st.needsAny(n, read) {
			st.dirtyNodes[name] = true
		}
	}
}

// reads reports whether pods of the group read a ConfigMap, Secret or
// RuntimeClass.
func (g *group) reads(c desired.Key) bool {
	if isRuntimeClass(c) {
		return slices.ContainsFunc(g.sets, func(s *set) bool { return runtimeClass(&s.template.Spec) == c.Name })
	}
	if c.Namespace != g.key.Namespace {
		return false
	}
	for _, s := range g.sets {
		if slices.Contains(s.refs, c) {
			return true
		}
	}
	return false
}

func serviceKey(namespace, name string) desired.Key {
	return desired.Key{Kind: kindService, Namespace: namespace, Name: name}
}

// namespaceLabels are those of a Namespace object, with the name that
// Kubernetes adds.
func (s *State) namespaceLabels(name string) map[string]string {
	labels := map[string]string{corev1.LabelMetadataName: name}
	if s.snapshot == nil {
		return labels
	}
	if o := s.snapshot.Get(desired.Key{Kind: kindNamespace, Name: name}); o != nil {
		if v, ok := o.Value.(*corev1.Namespace); ok {
			for k, l := range v.Labels {
				labels[k] = l
			}
		}
	}
	return labels
}
