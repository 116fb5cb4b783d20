package planner

import (
	"cmp"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/benbjohnson/immutable"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner/place"
	"github.com/tallyman-dev/tallyman/planner/route"
	"github.com/tallyman-dev/tallyman/planner/workload"
	"github.com/tallyman-dev/tallyman/proxy"
)

// State is all that the planner knows, at one instant. Immutable and safe for
// concurrent use; two states share what did not change between them.
type State struct {
	config Config

	// snapshot is the revision in force; nil before the first, and after a start
	// until the loop has given it again.
	snapshot *desired.Snapshot
	// inventory are the objects of the revision in force as the record has them;
	// only kept while snapshot is nil.
	inventory map[desired.Key]string
	force     inForce
	// network is fixed after first use.
	network desired.Network
	held    *nodes.Hold
	// blind is set while a snapshot is in force that nobody could compare with
	// an inventory, for there was no record and no node had reported.
	blind bool
	// recorded is set when a record was restored, informed besides when a node
	// has reported completely: before that nothing is planned.
	recorded, informed bool
	// lent is set when the record is a node's ledger, which may be old.
	lent bool
	// absent are the nodes that this ledger knows of and that have not reported.
	absent []string
	// started is the first instant that the planner saw, at the newest.
	started, at time.Time

	groups   *immutable.SortedMap[desired.Key, *group]
	services *immutable.SortedMap[desired.Key, *service]
	nodes    *immutable.SortedMap[string, *node]
	configs  *immutable.Map[desired.Key, *nodes.Config]
	// made has the names of the Jobs that each CronJob made and that are there.
	made *immutable.Map[desired.Key, []string]
	// pods finds a pod's group.
	pods *immutable.Map[nodes.UID, podRef]

	claims  *immutable.SortedMap[desired.Key, *claim]
	volumes *immutable.SortedMap[string, *volume]
	// snapshots are the VolumeSnapshots; their data is among volumes.
	snapshots *immutable.SortedMap[desired.Key, *volumeSnapshot]
	// users are the pods that use each claim.
	users *immutable.SortedMap[desired.Key, *immutable.SortedMap[nodes.UID, struct{}]]
	// storageWaits are the volumes that a node has something to do about;
	// storageWake is when the next data's time of grace is over.
	storageWaits []nodes.WaitingItem
	storageWake  time.Time
	// reachDirty is set when a volume that is tied to its node might be free by now.
	reachDirty bool

	// active are the groups that wait for something; pending the pods without a
	// node; draining those taken out of the routes and not yet told to stop.
	active   *immutable.SortedMap[desired.Key, struct{}]
	pending  *waiters
	draining *immutable.SortedMap[nodes.UID, struct{}]
	// keepsRoom is set while pods of lower priority go for one that is pending.
	keepsRoom bool

	groupLabels, serviceLabels labelIndex
	addrs                      *immutable.Map[netip.Addr, desired.Key]
	nodePorts                  *immutable.Map[route.NodePort, desired.Key]
	routes                     *proxy.Table
	// routesChanged is set while something is to be routed otherwise than routes
	// say, and the next table waits; routed is when routes was made.
	routesChanged bool
	routed        time.Time
	// owed is the generation of routes that the revision in force needs; 0
	// while something else of it is still to come.
	owed uint64
	// behind are the live nodes that don't have what is owed, and since when.
	behind *immutable.SortedMap[string, time.Time]
	// inForceOn counts the live nodes by the generation that they have in force;
	// newest is the newest that any node ever had.
	inForceOn *immutable.SortedMap[uint64, int]
	newest    uint64
	// minders are the groups with terms about a label; particular counts the
	// templates whose terms tell apart pods of one template.
	minders    labelIndex
	particular int
	// troubled counts the services that can't have what they ask for.
	troubled int

	autoscaling
	muster
	stock

	// differences and actions are those of the newest revision and step, to show.
	differences, actions []string
}

// inForce is what the record keeps about the revision in force.
type inForce struct {
	Revision desired.Revision `json:"revision"`
	Source   string           `json:"source,omitempty"`
	// Since is when it came into force.
	Since time.Time `json:"since,omitzero"`
}

// New is the empty cluster. The secret key must have at least 16 bytes.
func New(c Config) *State {
	if len(c.SecretKey) < 16 {
		panic("planner: Config.SecretKey must have at least 16 bytes")
	}
	uids := comparer[nodes.UID](func(a, b nodes.UID) int { return strings.Compare(string(a), string(b)) })
	return &State{
		config:        c,
		autoscaling:   newAutoscaling(),
		muster:        newMuster(),
		stock:         newStock(),
		groups:        immutable.NewSortedMap[desired.Key, *group](comparer[desired.Key](desired.Key.Compare)),
		services:      immutable.NewSortedMap[desired.Key, *service](comparer[desired.Key](desired.Key.Compare)),
		nodes:         immutable.NewSortedMap[string, *node](comparer[string](strings.Compare)),
		configs:       immutable.NewMap[desired.Key, *nodes.Config](hasher[desired.Key](hashKey)),
		claims:        immutable.NewSortedMap[desired.Key, *claim](comparer[desired.Key](desired.Key.Compare)),
		volumes:       immutable.NewSortedMap[string, *volume](comparer[string](strings.Compare)),
		snapshots:     immutable.NewSortedMap[desired.Key, *volumeSnapshot](comparer[desired.Key](desired.Key.Compare)),
		users:         immutable.NewSortedMap[desired.Key, *immutable.SortedMap[nodes.UID, struct{}]](comparer[desired.Key](desired.Key.Compare)),
		made:          immutable.NewMap[desired.Key, []string](hasher[desired.Key](hashKey)),
		pods:          immutable.NewMap[nodes.UID, podRef](hasher[nodes.UID](func(u nodes.UID) uint32 { return hashText(string(u)) })),
		active:        immutable.NewSortedMap[desired.Key, struct{}](comparer[desired.Key](desired.Key.Compare)),
		pending:       immutable.NewSortedMap[waiter, struct{}](comparer[waiter](compareWaiters)),
		draining:      immutable.NewSortedMap[nodes.UID, struct{}](uids),
		behind:        immutable.NewSortedMap[string, time.Time](comparer[string](strings.Compare)),
		inForceOn:     immutable.NewSortedMap[uint64, int](comparer[uint64](cmp.Compare[uint64])),
		groupLabels:   newLabelIndex(),
		serviceLabels: newLabelIndex(),
		minders:       newLabelIndex(),
		addrs:         immutable.NewMap[netip.Addr, desired.Key](hasher[netip.Addr](func(a netip.Addr) uint32 { return hashText(string(a.AsSlice())) })),
		nodePorts: immutable.NewMap[route.NodePort, desired.Key](hasher[route.NodePort](func(p route.NodePort) uint32 {
			return hashText(string(p.Protocol)) ^ uint32(p.Port)*2654435761
		})),
	}
}

// InForce is the revision that the cluster follows; nil before the first.
func (s *State) InForce() *desired.Snapshot { return s.snapshot }

// Informed reports whether there was a record or a node has reported
// completely. Before that nothing is known of what runs, and nothing is planned.
func (s *State) Informed() bool { return s.informed }

// group is one workload of Git with its pods and the templates they are made
// from. Groups outlive their object until the last pod is gone. Immutable once
// its step is over.
type group struct {
	key     desired.Key
	uid     string
	created time.Time
	// revised is when a revision last changed the object or what its pods read.
	revised time.Time
	// object is nil when Git doesn't have it, or not yet.
	object *desired.Object
	// maker is the workload that object was made for when it is not in Git
	// itself (a CronJob's Job): it is then that group's to set and to remove.
	maker desired.Key
	// run is that of a Job, cron that of a CronJob; nil for others and before
	// the first look. recorded is the decision about it.
	run      *run
	cron     *cron
	recorded json.RawMessage
	// stale is set when object or the content it reads may differ from current.
	stale bool
	// counter is the newest incarnation.
	counter   uint64
	scaledMax int
	// stable is the template that all pods of a StatefulSet had before today's:
	// its partition keeps it. proven is the one with which all were ready last.
	stable, proven string
	// holders are the nodes of a StatefulSet's pods by ordinal, as the ledger
	// keeps them: should the record be lost, a node that has not spoken since may
	// run the pod.
	holders map[int]string
	// failures of a DaemonSet's pods by node.
	failures map[string]workload.Failures
	// sets by revision; current is the one of today's template, nil if none yet.
	sets    []*set
	current *set
	// minds are the labels under which the index of terms has the group.
	minds []pair
	// pods by incarnation, leaving ones included.
	pods []*pod

	verdict workload.Verdict
	// lateSince is when verdict.Late was set; zero when that was before our
	// start and before the revision in force.
	lateSince time.Time
	waiting   []nodes.WaitingItem
	// line tells a push how far the group is; empty when it is settled.
	line string
	wake time.Time
}

// set is a ReplicaSet: the pods of one group that share a template. Immutable.
type set struct {
	hash     string
	template *nodes.Template
	request  *place.Request
	refs     []desired.Key
	// content is the digest of what the pods read besides files.
	content  string
	revision int
	since    time.Time
	// complete is set once all wanted pods of the set have been available.
	complete bool
}

// pod is a decision with what is known of it. Immutable.
type pod struct {
	*nodes.Pod
	set *set
	// request is the set's, with the pod's own labels.
	request *place.Request
	// aim is the one node that the pod is for; empty for a pod that may run on any.
	aim string
	// claims are those behind its volumes.
	claims []desired.Key
	status *nodes.PodStatus
	// left tells that its node holds it no more and still found something of it.
	left bool
	// leaving says why the pod goes; empty for one that stays.
	leaving string
	// drain is the generation that no longer routes to the pod; drainBy ends
	// the waiting for it.
	drain   uint64
	drainBy time.Time
	// refusal says why no node fits.
	refusal string
	// released is set once an ended pod no longer counts on its node.
	released bool

	// lost is what is thought of a pod whose node does not answer.
	lost lostness
	// asked is set while its node is asked to fence it, fenced once the keeper has
	// promised to kill it with the node's lease.
	asked, fenced bool
	// unfenced is the session in which the fence was taken back: what is promised
	// there later may have been said before.
	unfenced uint64
	// unproven is set if the pod was adopted while nodes were absent that may have
	// got another in its place.
	unproven bool
	// departs says why the pod is to leave its node, which is drained; since
	// departing. Empty for one that stays.
	departs   string
	departing time.Time
	// held says why a pod that should be elsewhere is where it is.
	held string
}

func (p *pod) done() bool { return p.status != nil && p.status.Done() }
func (p *pod) serving() bool {
	return p.leaving == "" && p.Stop == nil && p.status != nil && p.status.Ready
}

// bare reports whether the pod itself stands in Git.
func (p *pod) bare() bool { return p.Owner == p.Key() }

type podRef struct {
	group       desired.Key
	incarnation uint64
}

// node is a machine with what is bound to it. Immutable.
type node struct {
	nodes.NodeState
	// told is set once the server has heard of the node since its start, or given
	// it up, reported once the node has reported completely since our start.
	told, reported bool
	// kept is what is recorded of it, state what it is to the cluster.
	kept  machineRecord
	state nodes.NodeState
	// heard is the session of its last complete report.
	heard uint64
	// seat is how it is counted, look when one of its pods may be due.
	seat seat
	look time.Time
	// waits is set while nothing is given up for a storm, calm until when it is
	// excused after one.
	waits bool
	calm  time.Time
	// spared is until when its pods stay in the routes though it is silent, since
	// another came back from the same storm; it is so once a silence.
	spared    time.Time
	wasSpared bool
	// rangeTrouble says why it does not have the range that it uses, or any.
	rangeTrouble string
	// keyTrouble says why the WireGuard key that it tells is not its own.
	keyTrouble string
	// departed counts the pods that have left it since it is drained, or since the
	// server started.
	departed int
	load     *place.Node
	// images are those that it has.
	images []*nodes.Image
	pods   *immutable.SortedMap[nodes.UID, *nodes.Pod]
	// configs counts the pods that read each ConfigMap or Secret.
	configs *immutable.SortedMap[desired.Key, int]
}

func (n *node) live() bool { return n != nil && n.Ready && n.reported }

// silent reports whether the server has given up hearing from the node.
func (n *node) silent() bool { return n != nil && n.told && !n.Ready }

// routed reports whether traffic may be led to the node's pods, as far as the
// node is concerned: only silence takes them out, not that nothing is known.
func (n *node) routed() bool { return n != nil && (!n.silent() || !n.spared.IsZero()) }

// mayUse reports whether an address may be that of a node's pod: one of its range,
// or its own for a pod on its network. A node that says otherwise would have the
// traffic of other nodes' pods led to where it likes.
func (n *node) mayUse(p *pod, addr netip.Addr) bool {
	switch {
	case n == nil:
		return false
	case p.Template.Spec.HostNetwork:
		return slices.Contains(n.Addrs, addr)
	}
	return n.podCIDR().Contains(addr)
}

// service is one Service with its addresses and its entry of the route table.
// Immutable.
type service struct {
	key     desired.Key
	object  *desired.Object
	lease   route.Lease
	problem string
	// since is when the problem came up, or a revision changed the service in
	// spite of it.
	since    time.Time
	entry    *proxy.Service
	notReady route.NotReady
	// indexed is the label pair under which the index has it.
	indexed pair
}

// pod finds a pod by its uid; nil when there is none.
func (s *State) pod(uid nodes.UID) (*group, *pod) {
	ref, ok := s.pods.Get(uid)
	if !ok {
		return nil, nil
	}
	g, ok := s.groups.Get(ref.group)
	if !ok {
		return nil, nil
	}
	i, found := g.find(ref.incarnation)
	if !found {
		return g, nil
	}
	return g, g.pods[i]
}

func (g *group) find(incarnation uint64) (int, bool) {
	return slices.BinarySearchFunc(g.pods, incarnation, func(p *pod, n uint64) int {
		switch {
		case p.Incarnation < n:
			return -1
		case p.Incarnation > n:
			return 1
		default:
			return 0
		}
	})
}

func (g *group) set(hash string) *set {
	for _, s := range g.sets {
		if s.hash == hash {
			return s
		}
	}
	return nil
}

// replaceSet puts a changed copy in the place of the set with its hash.
func (g *group) replaceSet(s *set) {
	g.sets = slices.Clone(g.sets)
	for i := range g.sets {
		if g.sets[i].hash == s.hash {
			g.sets[i] = s
		}
	}
	if g.current != nil && g.current.hash == s.hash {
		g.current = s
	}
}

// owner names the controller of a set's pods.
func (g *group) owner(s *set) desired.Key { return g.kind().owner(g.key, s.hash) }

const (
	kindDeployment = "Deployment"
	kindReplicaSet = "ReplicaSet"
	kindPod        = "Pod"

	kindStatefulSet           = "StatefulSet"
	kindDaemonSet             = "DaemonSet"
	kindReplicationController = "ReplicationController"

	kindJob     = "Job"
	kindCronJob = "CronJob"

	kindService   = "Service"
	kindConfigMap = "ConfigMap"
	kindSecret    = "Secret"
	kindNamespace = "Namespace"
	kindNode      = "Node"

	kindClaim  = "PersistentVolumeClaim"
	kindVolume = "PersistentVolume"
	kindClass  = "StorageClass"

	snapshotGroup       = "snapshot.storage.k8s.io"
	kindSnapshot        = "VolumeSnapshot"
	kindSnapshotClass   = "VolumeSnapshotClass"
	kindSnapshotContent = "VolumeSnapshotContent"

	kindRuntimeClass = "RuntimeClass"
	kindBudget       = "PodDisruptionBudget"
)
