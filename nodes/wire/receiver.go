package wire

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/wire/pb"
	"github.com/tallyman-dev/tallyman/proxy"
)

// receiver is the agent's side of sender: it puts complete values together
// from differences. An error means that the stream can't be trusted any more;
// a new session begins with complete state.
type receiver struct {
	seq uint64

	assigned, assigning bool
	node                string
	network             desired.Network
	templates           map[uint64]*nodes.Template
	pods                map[nodes.UID]*nodes.Pod
	configs             map[desired.Key]*nodes.Config
	volumes             map[string]*nodes.Volume
	measured, fenced    []nodes.UID
	podCIDR             netip.Prefix
	session             uint64

	routed, routing bool
	table           *proxy.Table
	// tables are shared with other receivers; nil for none.
	tables *Tables

	ledgerComplete bool
	ledger         []nodes.Decision
}

func newReceiver() *receiver { return &receiver{table: &proxy.Table{}} }

func (r *receiver) follows(seq uint64) error {
	if seq != r.seq+1 {
		return fmt.Errorf("message %d came after message %d", seq, r.seq)
	}
	r.seq = seq
	return nil
}

// assignment returns the complete assignment once all parts are there, nil before.
func (r *receiver) assignment(d *pb.AssignmentDelta) (*nodes.Assignment, error) {
	if err := r.follows(d.GetSeq()); err != nil {
		return nil, err
	}
	switch {
	case d.GetComplete() && !r.assigning:
		r.node, r.assigned = d.GetNode(), true
		r.templates = map[uint64]*nodes.Template{}
		r.pods = map[nodes.UID]*nodes.Pod{}
		r.configs = map[desired.Key]*nodes.Config{}
		r.volumes, r.measured, r.fenced = map[string]*nodes.Volume{}, nil, nil
	case !r.assigned:
		return nil, fmt.Errorf("message %d changes an assignment that never came", d.GetSeq())
	}
	r.assigning = d.GetMore()
	if err := r.apply(d); err != nil {
		return nil, err
	}
	if d.GetMore() {
		return nil, nil
	}
	return r.assemble(), nil
}

func (r *receiver) apply(d *pb.AssignmentDelta) error {
	if n := d.GetNetwork(); n != nil {
		network, err := decodeNetwork(n)
		if err != nil {
			return err
		}
		if r.podCIDR, err = decodePrefix(d.GetPodCidr()); err != nil {
			return fmt.Errorf("pod range of the node: %w", err)
		}
		r.network, r.session = network, d.GetSession()
	}
	for _, t := range d.GetTemplates() {
		template, err := decodeTemplate(t)
		if err != nil {
			return err
		}
		r.templates[t.GetRef()] = template
	}
	for _, p := range d.GetPods() {
		pod, err := decodePod(p, r.templates)
		if err != nil {
			return err
		}
		r.pods[pod.UID] = pod
	}
	for _, uid := range d.GetPodsGone() {
		delete(r.pods, nodes.UID(uid))
	}
	for _, ref := range d.GetTemplatesGone() {
		delete(r.templates, ref)
	}
	for _, c := range d.GetConfigs() {
		config := decodeConfig(c)
		r.configs[config.Key] = config
	}
	for _, k := range d.GetConfigsGone() {
		delete(r.configs, decodeKey(k))
	}
	return r.applyVolumes(d)
}

func (r *receiver) applyVolumes(d *pb.AssignmentDelta) error {
	for _, v := range d.GetVolumes() {
		volume, err := decodeVolume(v)
		if err != nil {
			return err
		}
		r.volumes[volume.Name] = volume
	}
	for _, name := range d.GetVolumesGone() {
		delete(r.volumes, name)
	}
	if m := d.GetMeasured(); m != nil {
		r.measured = each(m.GetPods(), decodeUID)
	}
	if f := d.GetFenced(); f != nil {
		r.fenced = each(f.GetPods(), decodeUID)
	}
	return nil
}

func (r *receiver) assemble() *nodes.Assignment {
	return &nodes.Assignment{
		Node:    r.node,
		Network: r.network, PodCIDR: r.podCIDR, Fenced: r.fenced, Session: r.session,
		Pods: slices.SortedFunc(maps.Values(r.pods), func(a, b *nodes.Pod) int {
			return strings.Compare(string(a.UID), string(b.UID))
		}),
		Configs: slices.SortedFunc(maps.Values(r.configs), func(a, b *nodes.Config) int {
			return a.Key.Compare(b.Key)
		}),
		Volumes: slices.SortedFunc(maps.Values(r.volumes), func(a, b *nodes.Volume) int {
			return strings.Compare(a.Name, b.Name)
		}),
		Measured: r.measured,
	}
}

// routes returns the complete table once all parts are there, nil before.
// Services that did not change keep their pointers.
func (r *receiver) routes(d *pb.RouteDelta) (*proxy.Table, error) {
	if err := r.follows(d.GetSeq()); err != nil {
		return nil, err
	}
	if known := r.tables.find(d.GetGeneration()); known != nil && (d.GetComplete() || r.routed) && !d.GetMore() {
		r.table, r.routed, r.routing = known, true, false
		return known, nil
	}
	next := &proxy.Table{Generation: d.GetGeneration(), Domain: d.GetDomain()}
	switch {
	case d.GetComplete() && !r.routing:
		r.routed = true
	case !r.routed:
		return nil, fmt.Errorf("message %d changes a route table that never came", d.GetSeq())
	default:
		next.Services, next.Nodes = slices.Clone(r.table.Services), slices.Clone(r.table.Nodes)
	}
	r.routing = d.GetMore()
	for _, s := range d.GetServices() {
		service, err := decodeService(s)
		if err != nil {
			return nil, err
		}
		next.Services = putService(next.Services, service)
	}
	for _, name := range d.GetGone() {
		gone := &proxy.Service{Namespace: name.GetNamespace(), Name: name.GetName()}
		if i, found := slices.BinarySearchFunc(next.Services, gone, (*proxy.Service).Compare); found {
			next.Services = slices.Delete(next.Services, i, i+1)
		}
	}
	if err := applyPeers(next, d); err != nil {
		return nil, err
	}
	r.table = next
	if d.GetMore() {
		return nil, nil
	}
	r.tables.keep(next)
	return next, nil
}

func applyPeers(t *proxy.Table, d *pb.RouteDelta) error {
	for _, p := range d.GetNodes() {
		n, err := decodePeer(p)
		if err != nil {
			return err
		}
		if i, found := slices.BinarySearchFunc(t.Nodes, n, proxy.Node.Compare); found {
			t.Nodes[i] = n
		} else {
			t.Nodes = slices.Insert(t.Nodes, i, n)
		}
	}
	for _, name := range d.GetNodesGone() {
		if i, found := slices.BinarySearchFunc(t.Nodes, proxy.Node{Name: name}, proxy.Node.Compare); found {
			t.Nodes = slices.Delete(t.Nodes, i, i+1)
		}
	}
	return nil
}

func putService(sorted []*proxy.Service, s *proxy.Service) []*proxy.Service {
	i, found := slices.BinarySearchFunc(sorted, s, (*proxy.Service).Compare)
	if found {
		sorted[i] = s
		return sorted
	}
	return slices.Insert(sorted, i, s)
}

// decisions returns what the ledger is told once all parts are there; ready
// is false before.
func (r *receiver) decisions(d *pb.LedgerDelta) (complete bool, decisions []nodes.Decision, ready bool, err error) {
	if err := r.follows(d.GetSeq()); err != nil {
		return false, nil, false, err
	}
	r.ledgerComplete = d.GetComplete()
	r.ledger = append(r.ledger, each(d.GetDecisions(), decodeDecision)...)
	if d.GetMore() {
		return false, nil, false, nil
	}
	decisions, r.ledger = r.ledger, nil
	return r.ledgerComplete, decisions, true, nil
}
