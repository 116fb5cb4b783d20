package planner

import (
	"maps"
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner/storage"
)

const disksDriver = "disks.csi.example.com"

// disks is the storage behind a CSI driver that runs on all machines. It refuses
// that a volume is attached to two of them, and that it is taken away beneath a pod.
type disks struct {
	t        fataler
	machines map[string]*machine
	// attached are the machines that have a volume, which may be one at a time.
	attached map[string]string
	// zones are the driver's topology, by machine; nil for a driver without.
	zones map[string]string
	// broken is why nothing can be detached from other machines.
	broken string
	// stuck is why no machine can unmount anything.
	stuck string
	// most volumes of a machine; 0 for any number.
	most int64
	// old machines say nothing of what this is about.
	old bool
}

const disksZone = disksDriver + "/zone"

// driven is a volume of a driver as one machine has it.
type driven struct {
	v *nodes.Volume
	// staged: it is attached here and pods may use it. kept: there is a record of it.
	staged, kept bool
	detached     map[string]bool
	told         nodes.VolumeStatus
}

// newDisks is a world whose machines share the storage of a driver.
func newDisks(t fataler, f *disks, names ...string) *world {
	f.t, f.attached = t, map[string]string{}
	w := newWorld(t)
	f.machines = w.machines
	for i, name := range names {
		w.machines[name] = &machine{
			name: name, index: i, held: map[nodes.UID]*nodes.Pod{}, status: map[nodes.UID]*nodes.PodStatus{}, disk: map[string]*nodes.Volume{},
			disks: f, driven: map[string]*driven{},
		}
	}
	for _, name := range names {
		w.join(name)
	}
	return w
}

func (m *machine) info() nodes.Node {
	n := info(m.name)
	if m.disks == nil {
		return n
	}
	n.Drivers, n.Labels = []string{disksDriver}, map[string]string{corev1.LabelHostname: m.name}
	if !m.disks.old {
		n.DriverNodes = []nodes.DriverNode{{Name: disksDriver, ID: "id-of-" + m.name, Controller: true, MaxVolumes: m.disks.most}}
	}
	if zone := m.disks.zones[m.name]; zone != "" {
		n.Labels[disksZone] = zone
	}
	return n
}

func (m *machine) assignDriven(list []*nodes.Volume) {
	if m.disks == nil {
		return
	}
	seen := map[string]bool{}
	for _, v := range list {
		if v.Provisioner != disksDriver {
			continue
		}
		seen[v.Name] = true
		if d := m.driven[v.Name]; d != nil {
			d.v = v
		} else {
			m.driven[v.Name] = &driven{v: v, detached: map[string]bool{}}
		}
	}
	for name, d := range m.driven {
		if !seen[name] && !d.kept { // a record stays until another node has it
			m.unstage(d)
			delete(m.driven, name)
		}
	}
}

func (m *machine) unstage(d *driven) {
	if d.staged && m.disks.attached[d.v.Name] == m.name {
		delete(m.disks.attached, d.v.Name)
	}
	d.staged = false
}

// stage gives a pod its volumes; false while they are not there.
func (m *machine) stage(p *nodes.Pod) (out []nodes.VolumeStatus, ok bool) {
	if m.disks == nil {
		return nil, true
	}
	for _, k := range claimsOf(p) {
		for _, name := range slices.Sorted(maps.Keys(m.driven)) {
			d := m.driven[name]
			switch {
			case d.v.Claim != k:
				continue
			case !d.kept && (d.v.Maker == "" || d.v.Maker == m.name):
				return out, false // it is still being made
			}
			if at := m.disks.attached[name]; at != "" && at != m.name {
				m.disks.t.Fatalf("volume %s is attached to %s, and %s stages it for pod %s", name, at, m.name, p.Name)
			}
			d.staged, m.disks.attached[name] = true, m.name
			if s := m.statusOf(d); !reflect.DeepEqual(s, d.told) {
				d.told = s
				out = append(out, s)
			}
		}
	}
	return out, true
}

// tendDriven makes, leaves, detaches and deletes what the newest assignment asks
// for.
func (m *machine) tendDriven() (out []nodes.VolumeStatus) {
	for _, name := range slices.Sorted(maps.Keys(m.driven)) {
		d := m.driven[name]
		if !m.wants(d) && m.disks.stuck == "" {
			m.unstage(d)
		}
		for _, order := range d.v.Detach {
			if slices.Contains(order.By, m.name) && m.disks.broken == "" {
				if order.ID != "id-of-"+order.Node {
					m.disks.t.Fatalf("volume %s is to be detached from %s as %q", name, order.Node, order.ID)
				}
				if other := m.disks.machines[order.Node]; other != nil && other.runs(d.v) {
					m.disks.t.Fatalf("volume %s is detached from %s, where a pod uses it", name, order.Node)
				}
				if m.disks.attached[name] == order.Node {
					delete(m.disks.attached, name)
				}
				d.detached[order.Node] = true
			}
		}
		d.kept = d.v.Maker == "" && (d.kept || d.v.Node == m.name) || d.v.Maker == m.name
		s := m.statusOf(d)
		if d.v.Delete && d.kept {
			if at := m.disks.attached[name]; at != "" {
				m.disks.t.Fatalf("volume %s is deleted and attached to %s", name, at)
			}
			s = nodes.VolumeStatus{Name: d.v.Name, UID: d.v.UID, Phase: nodes.VolumeGone}
			delete(m.driven, name)
		}
		if !reflect.DeepEqual(s, d.told) {
			d.told = s
			out = append(out, s)
		}
	}
	return out
}

// runs reports whether the machine has a pod that uses a volume.
func (m *machine) runs(v *nodes.Volume) bool {
	for uid, p := range m.held {
		if m.status[uid] != nil && slices.Contains(claimsOf(p), v.Claim) {
			return true
		}
	}
	return false
}

// wants reports whether a pod of the machine uses a volume, or is about to.
func (m *machine) wants(d *driven) bool {
	for _, p := range m.held {
		if p.Stop == nil && slices.Contains(claimsOf(p), d.v.Claim) {
			return true
		}
	}
	return false
}

func (m *machine) statusOf(d *driven) nodes.VolumeStatus {
	size := d.v.Spec.Capacity[corev1.ResourceStorage]
	s := nodes.VolumeStatus{Name: d.v.Name, UID: d.v.UID, Phase: nodes.VolumeReady, Capacity: size.Value()}
	if d.kept {
		s.Source = &corev1.CSIPersistentVolumeSource{Driver: disksDriver, VolumeHandle: "handle-of-" + d.v.Name}
	}
	if m.disks.old {
		return s
	}
	if d.kept && d.v.Reach == nil {
		s.Reach = &nodes.Reach{}
		if zone := m.disks.zones[m.name]; zone != "" {
			s.Reach.Topology = []map[string]string{{disksZone: zone}}
		}
	}
	switch {
	case d.staged:
		s.Use = nodes.VolumeUsed
	case d.kept:
		s.Use = nodes.VolumeIdle
	default:
		s.Use = nodes.VolumeUnknown
	}
	if d.staged && !m.wants(d) && m.disks.stuck != "" {
		s.Phase, s.Message = nodes.VolumeFailed, m.disks.stuck
	}
	for _, order := range d.v.Detach {
		if slices.Contains(order.By, m.name) {
			s.Detach = append(s.Detach, nodes.DetachStatus{Node: order.Node, Done: d.detached[order.Node]})
			if m.disks.broken != "" {
				s.Phase, s.Message = nodes.VolumeFailed, m.disks.broken
			}
		}
	}
	for node := range d.detached {
		if !slices.ContainsFunc(s.Detach, func(t nodes.DetachStatus) bool { return t.Node == node }) {
			delete(d.detached, node)
		}
	}
	return s
}

// tellDriven is what a complete report has.
func (m *machine) tellDriven() (out []nodes.VolumeStatus) {
	for _, name := range slices.Sorted(maps.Keys(m.driven)) {
		s := m.statusOf(m.driven[name])
		m.driven[name].told = s
		s.Held = m.driven[name].v
		out = append(out, s)
	}
	return out
}

// die ends all that runs on a machine; what is attached stays so.
func (w *world) die(name string) {
	w.t.Helper()
	m := w.machines[name]
	clear(m.held)
	clear(m.status)
	w.next(Change{Nodes: []nodes.NodeState{{Node: nodes.Node{Name: name}, Since: w.now, Reason: "no heartbeat"}}})
}

// over ends the lease of a machine that does not answer.
func (w *world) over(name string) {
	w.t.Helper()
	w.next(Change{Nodes: []nodes.NodeState{{Node: nodes.Node{Name: name}, Since: w.now, Reason: "no heartbeat", Lapsed: true}}})
}

// attachedTo is the machine that has the volume of a claim.
func (w *world) attachedTo(claim string) string {
	c, _ := w.s.claims.Get(storage.ClaimKey("default", claim))
	for _, m := range w.machines {
		return m.disks.attached[c.Volume]
	}
	return ""
}
