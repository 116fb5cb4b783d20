package sim

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tallyman-dev/tallyman/desired"
)

// fleet is what worlds of many machines have beside all others: zones, kinds of
// machines, workloads that care where they run, and the faults of a data centre.
// It draws from a source of chance of its own.
type fleet struct {
	rng   *rand.Rand
	zones int
	// clocks tells that wall clocks differ and jump, the servers' as jumps says.
	clocks bool
	jumps  *rand.Rand
	// fenced worlds are about StatefulSets that fail over.
	fenced bool
	// tended machines are drained and declared dead.
	tended bool
}

// time draws how long nodes may be silent, and what follows.
func (f *fleet) time(i *intent) {
	if f == nil {
		return
	}
	seconds := func(list ...int) time.Duration { return time.Duration(pick(f.rng, list...)) * time.Second }
	i.nodes = desired.Nodes{SilentAfter: seconds(2, 4, 4, 10), Lease: seconds(3, 6, 6, 20), Tolerate: seconds(0, 0, 5, 60)}
	i.nodes.Failover = pick(f.rng, "", failoverWait, failoverFenced, failoverFenced)
	if f.fenced {
		i.nodes = desired.Nodes{SilentAfter: seconds(2, 4), Lease: seconds(3, 6, 10), Failover: failoverFenced}
	}
}

func drawFleet(seed uint64, fenced bool) (*fleet, shape) {
	f := &fleet{rng: rand.New(rand.NewPCG(seed, 0xf1ee7)), jumps: rand.New(rand.NewPCG(seed, 0xc10c))}
	f.zones, f.clocks = 1+f.rng.IntN(3), f.rng.IntN(3) == 0
	s := shape{nodes: 3 + f.rng.IntN(5), workloads: 2 + f.rng.IntN(4), events: 8 + f.rng.IntN(14), cpu: 64}
	switch n := f.rng.IntN(300); {
	case n == 0:
		s.nodes, s.events = 60+f.rng.IntN(140), 5+f.rng.IntN(5)
	case n < 15:
		s.nodes, s.events = 10+f.rng.IntN(25), 6+f.rng.IntN(10)
	}
	if f.rng.IntN(4) == 0 {
		s.cpu = 1
	}
	s.replicas = 2 + f.rng.IntN(s.nodes)
	if f.fenced = fenced || f.rng.IntN(4) == 0; f.fenced {
		f.zones, s.nodes, s.cpu, s.replicas = 1, 5+f.rng.IntN(3), 64, 5
	}
	return f, s
}

const (
	labelDisk = "disk"
	fastDisk  = "ssd"
)

// labels of a machine, as its flags say.
func (f *fleet) labels(index int) map[string]string {
	if f == nil {
		return nil
	}
	set := map[string]string{corev1.LabelTopologyZone: f.zone(index), labelDisk: "hdd"}
	if index%2 == 0 {
		set[labelDisk] = fastDisk
	}
	return set
}

func (f *fleet) zone(index int) string { return fmt.Sprintf("zone-%d", index%f.zones) }

// company is where the pods of a workload want to be, and with whom.
type company struct {
	// zone and fast choose nodes, prefers leans towards a zone.
	zone    string
	fast    bool
	prefers string
	// apart keeps the pods of the workload off each other's nodes: "must" or
	// "should"; spread evens them out over zones or nodes, likewise.
	apart, spread string
	// over is the topology key of spread; empty for none.
	over string
	// together keeps all in one zone.
	together bool
	// port claims a port of the node.
	port bool
	// patience in seconds is how long the pods stay on a node that is not heard
	// of, if the workload says so itself: from 1, or forEver.
	patience int
	// failover, if the workload says so itself.
	failover string
	// tolerant pods stay on nodes, whatever is said of them.
	tolerant bool
}

const (
	must, should = "must", "should"
	hostPort     = 9000
	forEver      = -1

	failoverKey                  = "tallyman.dev/failover"
	failoverWait, failoverFenced = "wait", "fenced"
)

// draw chooses company for a workload.
func (f *fleet) draw(k desired.Key) (c company) {
	if f == nil {
		return c
	}
	if k.Kind == kindDaemonSet { // one on each node, wherever that is
		c.tolerant = f.tended
		c.port = f.rng.IntN(3) == 0
		return c
	}
	if f.rng.IntN(4) == 0 {
		c.patience = pick(f.rng, 1, 20, 20, forEver)
	}
	if f.fenced {
		return c
	}
	if k.Kind == kindStatefulSet && f.rng.IntN(4) == 0 {
		c.failover = pick(f.rng, failoverWait, failoverFenced)
	}
	switch f.rng.IntN(10) {
	case 0:
		c.zone = f.zone(f.rng.IntN(f.zones))
	case 1:
		c.fast = true
	case 2:
		c.prefers = f.zone(f.rng.IntN(f.zones))
	case 3, 4:
		c.apart = pick(f.rng, must, must, should)
	case 5, 6:
		c.spread, c.over = pick(f.rng, must, must, should), pick(f.rng, corev1.LabelTopologyZone, corev1.LabelHostname)
	case 7:
		c.together = true
	case 8:
		c.port = true
	}
	return c
}

// kind is that of a new workload, instead of the one that was drawn.
func (f *fleet) kind(drawn string) string {
	if f != nil && f.fenced {
		return kindStatefulSet
	}
	return drawn
}

// settle gives up wishes that could not be fulfilled while a rollout makes pods
// before it ends others, and all but one claim on the port.
func (f *fleet) settle(i *intent, all int) {
	keepTogether(i, all)
	if f == nil {
		return
	}
	taken := false
	for _, k := range slices.SortedFunc(maps.Keys(i.workloads), desired.Key.Compare) {
		v := i.workloads[k]
		size := v.replicas
		if s, scaled := i.scalers[scalerKey(k)]; scaled {
			size = max(size, s.max)
		}
		fits := 2*size <= all
		if k.Kind == kindDaemonSet {
			fits = !v.recreate
		}
		if v.claim != "" || v.claimSize > 0 {
			v.company = company{prefers: v.prefers, patience: v.patience, failover: v.failover} // its data says where
		}
		if v.apart == must && !fits {
			v.apart = should
		}
		v.port = v.port && fits && !taken && k.Kind != kindCronJob
		taken = taken || v.port
		i.workloads[k] = v
	}
}

// keepTogether gives up claims whose data may be on another node than that of
// a set's own.
func keepTogether(i *intent, all int) {
	for k, v := range i.workloads {
		if all > 1 && v.claimSize > 0 && v.claim != "" {
			v.claim = ""
			i.workloads[k] = v
		}
	}
}

// join writes the company of a workload's pods into their spec.
func (c company) join(name string, t *corev1.PodTemplateSpec) {
	spec := &t.Spec
	if c.patience != 0 {
		spec.Tolerations = []corev1.Toleration{{Key: corev1.TaintNodeUnreachable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute}}
		if c.patience != forEver {
			spec.Tolerations[0].TolerationSeconds = new(int64(c.patience))
		}
	}
	if c.tolerant {
		spec.Tolerations = append(spec.Tolerations, corev1.Toleration{Operator: corev1.TolerationOpExists})
	}
	if c.failover != "" {
		t.Annotations = map[string]string{failoverKey: c.failover}
	}
	if c.zone != "" {
		spec.NodeSelector = map[string]string{corev1.LabelTopologyZone: c.zone}
	}
	if c.port {
		spec.Containers[0].Ports[0].HostPort = hostPort
	}
	own := &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}
	if c.over != "" {
		when := corev1.DoNotSchedule
		if c.spread == should {
			when = corev1.ScheduleAnyway
		}
		spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{MaxSkew: 1, TopologyKey: c.over, WhenUnsatisfiable: when, LabelSelector: own}}
	}
	if a := c.affinity(own); a != nil {
		spec.Affinity = a
	}
}

func (c company) affinity(own *metav1.LabelSelector) *corev1.Affinity {
	host := corev1.PodAffinityTerm{LabelSelector: own, TopologyKey: corev1.LabelHostname}
	switch {
	case c.fast:
		return &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{among(labelDisk, fastDisk)}},
		}}
	case c.prefers != "":
		return &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
			PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{{Weight: 10, Preference: among(corev1.LabelTopologyZone, c.prefers)}},
		}}
	case c.apart == must:
		return &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{host}}}
	case c.apart == should:
		return &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{
			PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{{Weight: 100, PodAffinityTerm: host}},
		}}
	case c.together:
		return &corev1.Affinity{PodAffinity: &corev1.PodAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{LabelSelector: own, TopologyKey: corev1.LabelTopologyZone}},
		}}
	}
	return nil
}

func among(key, value string) corev1.NodeSelectorTerm {
	return corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: key, Operator: corev1.NodeSelectorOpIn, Values: []string{value}}}}
}
