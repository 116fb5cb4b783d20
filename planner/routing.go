package planner

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/planner/route"
	"github.com/tallyman-dev/tallyman/proxy"
)

// applyService takes in a Service that was added, changed or removed.
func (st *step) applyService(k desired.Key, o *desired.Object) {
	if o == nil {
		st.dropService(k)
		return
	}
	v, ok := o.Value.(*corev1.Service)
	if !ok {
		return
	}
	s := &service{key: k}
	if known, exists := st.services.Get(k); exists {
		clone := *known
		s = &clone
	}
	s.object = o
	if s.indexed != (pair{}) {
		st.serviceLabels.remove(s.indexed, k)
		s.indexed = pair{}
	}
	if len(v.Spec.Selector) > 0 {
		s.indexed = st.serviceLabels.rarest(k.Namespace, v.Spec.Selector)
		st.serviceLabels.add(s.indexed, k)
	}
	st.services = st.services.Set(k, s)
	st.dirtyServices[k] = true
}

func (st *step) dropService(k desired.Key) {
	s, ok := st.services.Get(k)
	if !ok {
		return
	}
	st.release(s)
	if s.problem != "" {
		st.troubled--
	}
	if s.indexed != (pair{}) {
		st.serviceLabels.remove(s.indexed, k)
	}
	st.services = st.services.Delete(k)
	st.decide(kindOfLease, keyText(k), nil)
	st.routesChanged = st.routesChanged || s.entry != nil
	// What it held may be what another one waits for.
	st.dirtyTroubled()
}

func (st *step) dirtyTroubled() {
	if st.troubled == 0 {
		return
	}
	for k, s := range entries(st.services) {
		if s.problem != "" {
			st.dirtyServices[k] = true
		}
	}
}

// holdLease enters a service with the addresses that the record gives it.
func (st *step) holdLease(s *service) {
	if known, ok := st.services.Get(s.key); ok {
		clone := *known
		clone.lease = s.lease
		st.release(known)
		s = &clone
	}
	st.services = st.services.Set(s.key, s)
	for _, a := range s.lease.IPs {
		st.addrs = st.addrs.Set(a, s.key)
	}
	for _, p := range s.lease.Ports() {
		st.nodePorts = st.nodePorts.Set(p, s.key)
	}
}

func (st *step) release(s *service) {
	for _, a := range s.lease.IPs {
		if k, ok := st.addrs.Get(a); ok && k == s.key {
			st.addrs = st.addrs.Delete(a)
		}
	}
	for _, p := range s.lease.Ports() {
		if k, ok := st.nodePorts.Get(p); ok && k == s.key {
			st.nodePorts = st.nodePorts.Delete(p)
		}
	}
}

// dirtyServicesOf looks again at the services that select a pod.
func (st *step) dirtyServicesOf(p *pod) {
	for k := range st.servicesOf(p.Namespace, p.AllLabels()) {
		st.dirtyServices[k] = true
	}
}

func (s *State) servicesOf(namespace string, labels map[string]string) map[desired.Key]bool {
	var found map[desired.Key]bool
	for key, value := range labels {
		for k := range s.serviceLabels.all(pair{namespace, key, value}) {
			svc, ok := s.services.Get(k)
			if !ok || svc.object == nil || !contains(labels, selectorOf(svc.object)) {
				continue
			}
			if found == nil {
				found = map[desired.Key]bool{}
			}
			found[k] = true
		}
	}
	return found
}

func selectorOf(o *desired.Object) map[string]string {
	if v, ok := o.Value.(*corev1.Service); ok {
		return v.Spec.Selector
	}
	return nil
}

// mayBeRouted reports whether some node may still lead traffic to a pod: the
// table before this step does, or an earlier one did, perhaps of a server
// before us and by a service that is gone, that a node has not yet replaced.
// While a table is due, the newest one may lead where no service does any more.
func (st *step) mayBeRouted(p *pod) bool {
	if p.status == nil && !p.left && !st.routesWait() {
		return false
	}
	if n, _ := st.nodes.Get(p.Node); !n.live() {
		return true
	}
	if st.base.routes == nil || st.base.routesChanged || !st.drained(st.base.routes.Generation) {
		return true
	}
	for k := range st.base.servicesOf(p.Namespace, p.AllLabels()) {
		s, ok := st.base.services.Get(k)
		if !ok {
			continue
		}
		if s.entry == nil {
			return true
		}
		for _, port := range s.entry.Ports {
			if slices.ContainsFunc(port.Endpoints, func(e proxy.Endpoint) bool { return e.Pod == p.Name }) {
				return true
			}
		}
	}
	return false
}

// routeServices decides addresses and makes the new table when something is
// routed otherwise and the last one was long enough ago.
func (st *step) routeServices() {
	dirty := slices.SortedFunc(maps.Keys(st.dirtyServices), desired.Key.Compare)
	st.leaseAll(dirty)
	for _, k := range dirty {
		s, ok := st.services.Get(k)
		if !ok || s.object == nil {
			continue
		}
		clone := *s
		entry, notReady := route.Compile(s.object.Value.(*corev1.Service), s.lease, st.backends(s), st.manual(k))
		if s.entry == nil || !entry.Equal(s.entry) {
			st.routesChanged = true
			clone.entry = entry
		}
		clone.notReady = notReady
		st.services = st.services.Set(k, &clone)
	}
	if st.routesWait() {
		return
	}
	st.routesChanged = st.routesChanged || st.routes == nil || st.newest > st.routes.Generation
	if !st.routesChanged {
		return
	}
	if due := st.routed.Add(st.routePause()); st.now.Before(due) {
		st.wakeAt(due)
		return
	}
	st.routes = st.table()
	st.routesChanged, st.routed = false, st.now
	st.plan.Routes = st.routes
}

// routePause is how long after a table the next one is made at the earliest.
func (s *State) routePause() time.Duration {
	return min(s.config.RoutePace*time.Duration(s.nodes.Len()), maxRoutePause)
}

// leaseAll decides addresses: first for services that name theirs.
func (st *step) leaseAll(dirty []desired.Key) {
	for _, explicit := range []bool{true, false} {
		for _, k := range dirty {
			s, ok := st.services.Get(k)
			if !ok || s.object == nil {
				continue
			}
			if v := s.object.Value.(*corev1.Service); route.Explicit(v) == explicit {
				st.lease(s, v)
			}
		}
	}
}

func (st *step) lease(s *service, v *corev1.Service) {
	lease, problem := route.Decide(v, s.lease, st.network, route.Taken{
		Addr: func(a netip.Addr) bool { k, ok := st.addrs.Get(a); return ok && k != s.key },
		Port: func(p route.NodePort) bool { k, ok := st.nodePorts.Get(p); return ok && k != s.key },
	})
	if problem == s.problem && lease.Equal(s.lease) {
		return
	}
	clone := *s
	if problem != s.problem {
		clone.problem, clone.since = problem, st.now
	}
	st.troubled += boolInt(problem != "") - boolInt(s.problem != "")
	st.services = st.services.Set(s.key, &clone)
	if problem != "" && problem != s.problem {
		st.event(s.key, true, "AllocationFailed", problem)
	}
	if !lease.Equal(s.lease) {
		st.holdLease(&service{key: s.key, lease: lease})
		st.decide(kindOfLease, keyText(s.key), leaseRecord{Key: s.key, Lease: lease})
	}
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// backends are the pods that a service selects.
func (st *step) backends(s *service) []route.Backend {
	selector := selectorOf(s.object)
	if len(selector) == 0 {
		return nil
	}
	anyLive := st.anyLive()
	var out []route.Backend
	p := st.groupLabels.rarest(s.key.Namespace, selector)
	for k := range st.groupLabels.all(p) {
		g, ok := st.groups.Get(k)
		if !ok {
			continue
		}
		for _, p := range g.pods {
			if contains(p.AllLabels(), selector) {
				out = append(out, st.backend(p, anyLive))
			}
		}
	}
	return out
}

// backend describes a pod to its services. A silent node's pods are taken out
// only while another node can make use of that: the only one keeps its routes,
// and so do all when none answers, for then the fault is ours.
func (st *step) backend(p *pod, anyLive bool) route.Backend {
	b := route.Backend{Pod: p.Name, Node: p.Node, Spec: &p.Template.Spec, Leaving: p.leaving != "" || p.Stop != nil || p.done()}
	b.Hostname, b.Subdomain = p.HostName()
	if p.status == nil {
		return b
	}
	n, _ := st.nodes.Get(p.Node)
	if addr, err := netip.ParseAddr(p.status.IP); err == nil && n.mayUse(p, addr) {
		b.Addr = addr
	}
	b.Serving = p.serving() && (n.routed() || !anyLive)
	return b
}

func (s *State) anyLive() bool {
	for _, n := range entries(s.nodes) {
		if n.live() {
			return true
		}
	}
	return false
}

// manual are the endpoints that Git has for a service by hand.
func (st *step) manual(k desired.Key) route.Manual {
	var m route.Manual
	if o := st.snapshot.Get(desired.Key{Kind: "Endpoints", Namespace: k.Namespace, Name: k.Name}); o != nil {
		m.Endpoints, _ = o.Value.(*corev1.Endpoints)
	}
	for _, o := range st.snapshot.Kind("EndpointSlice") {
		if v, ok := o.Value.(*discoveryv1.EndpointSlice); ok && v.Namespace == k.Namespace && v.Labels[discoveryv1.LabelServiceName] == k.Name {
			m.Slices = append(m.Slices, v)
		}
	}
	return m
}

// routesWait reports whether a table would be made without knowing what the
// nodes of the record run: it would cut off pods that serve.
func (st *step) routesWait() bool {
	if st.snapshot == nil || !st.informed {
		return true
	}
	if st.routes != nil || !st.now.Before(st.started.Add(startPatience)) {
		return false
	}
	for _, n := range entries(st.nodes) {
		if !n.reported && n.pods.Len() > 0 {
			return true
		}
	}
	return false
}

// table is the whole route table under the next generation. The first one
// after a start is named by the time, so that it is newer than any before it.
func (st *step) table() *proxy.Table {
	generation := uint64(st.now.UnixMilli())
	if st.routes != nil {
		generation = st.routes.Generation + 1
	}
	generation = max(generation, st.newest+1)
	t := &proxy.Table{Generation: generation, Domain: st.network.Domain, Services: make([]*proxy.Service, 0, st.services.Len()), Nodes: st.peers}
	for _, s := range entries(st.services) {
		if s.entry != nil {
			t.Services = append(t.Services, s.entry)
		}
	}
	slices.SortFunc(t.Services, (*proxy.Service).Compare)
	return t
}

// drainPods stops the pods that no live node routes to any more. Before the
// first table after a start, nobody has been told to route elsewhere. Those that
// began to leave since the last table wait for the next one, which is the first
// without them.
func (st *step) drainPods() {
	if st.routes == nil {
		return
	}
	for _, uid := range slices.Collect(keys(st.draining)) {
		_, p := st.pod(uid)
		if p == nil {
			continue
		}
		if n, _ := st.nodes.Get(p.Node); !n.live() {
			// Nobody can stop it now, and when its node is back, the node must
			// hear of the routes first.
			if !p.drainBy.IsZero() {
				st.change(uid, func(p *pod) { p.drain, p.drainBy = 0, time.Time{} })
			}
			continue
		}
		if p.drainBy.IsZero() && st.routesChanged {
			continue
		}
		if p.drainBy.IsZero() {
			p = st.change(uid, func(p *pod) { p.drain, p.drainBy = st.routes.Generation, st.now.Add(drainPatience) })
		}
		if !st.now.Before(p.drainBy) || st.drained(p.drain) {
			st.stop(uid)
		}
	}
}
