package desired

import (
	"maps"
	"net/netip"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// ClusterKey names the one Cluster object a repository may hold. The name is
// free; the key that snapshots use is always this one.
var ClusterKey = Key{Group: "tallyman.dev", Kind: "Cluster", Name: "cluster"}

// Cluster is Tallyman's own kind (tallyman.dev/v1alpha1): the settings of the
// whole cluster, optional, at most one a repository, cluster-scoped.
type Cluster struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec ClusterSpec `json:"spec,omitempty"`
}

// ClusterSpec are the settings as written; a field left out has its default.
type ClusterSpec struct {
	// Unsupported says what a kind or field that Tallyman does not support
	// does to the revision: "reject" (default) or "warn".
	Unsupported string `json:"unsupported,omitempty"`
	// Guard bounds what one revision may delete without confirmation.
	Guard *GuardSpec `json:"guard,omitempty"`
	// Nodes says what becomes of pods whose node is not heard of.
	Nodes *NodesSpec `json:"nodes,omitempty"`
	// Placement says which nodes pods go to where several fit.
	Placement *PlacementSpec `json:"placement,omitempty"`
	// Network fixes the cluster's addresses. Fixed after first use.
	Network *NetworkSpec `json:"network,omitempty"`
	// PodSecurity judges pods in namespaces that say nothing themselves.
	PodSecurity *PodSecuritySpec `json:"podSecurity,omitempty"`
	// Storage says what becomes of data that Git no longer asks for.
	Storage *StorageSpec `json:"storage,omitempty"`
	// Metrics name where autoscalers find what nodes can't measure.
	Metrics *MetricsSpec `json:"metrics,omitempty"`
	// ServiceAccounts are about the tokens that pods get.
	ServiceAccounts *ServiceAccountsSpec `json:"serviceAccounts,omitempty"`
}

// NodesSpec is about nodes that are not heard of. Durations are Go durations.
type NodesSpec struct {
	// SilentAfter is how long a node may say nothing before it counts as
	// unreachable; default 4s, at least 2s.
	SilentAfter string `json:"silentAfter,omitempty"`
	// Tolerate is how long a pod without a toleration of its own for
	// node.kubernetes.io/unreachable stays bound to such a node; default 0s.
	Tolerate string `json:"tolerate,omitempty"`
	// Lease is how long fenced pods may run without word from the server; default
	// 6s, at least 3s.
	Lease string `json:"lease,omitempty"`
	// Failover of pods that one node at a time may hold: "fenced" or "wait".
	// Default: fenced where several servers run, else wait.
	Failover string `json:"failover,omitempty"`
}

// PlacementSpec is about the choice among nodes that fit.
type PlacementSpec struct {
	// Strategy is "pack" (default: fill nodes that are in use) or "spread".
	Strategy string `json:"strategy,omitempty"`
}

// PodSecuritySpec is about Kubernetes' pod security standards.
type PodSecuritySpec struct {
	// Enforce is "privileged" (the default: baseline is judged as a warning),
	// "baseline" or "restricted".
	Enforce string `json:"enforce,omitempty"`
}

// StorageSpec is about persistent volumes.
type StorageSpec struct {
	// Keep is how long the data of a volume whose reclaim rule is Delete outlives
	// its claim, as a Go duration; default 24h.
	Keep string `json:"keep,omitempty"`
}

// MetricsSpec is about metrics for autoscaling.
type MetricsSpec struct {
	// Prometheus is the address of its HTTP API.
	Prometheus string `json:"prometheus,omitempty"`
	// Queries in PromQL by the name of the metric in a HorizontalPodAutoscaler.
	Queries map[string]string `json:"queries,omitempty"`
}

// ServiceAccountsSpec is about service-account tokens.
type ServiceAccountsSpec struct {
	// Issuer in the tokens, a URL; default https://kubernetes.default.svc.<domain>.
	Issuer string `json:"issuer,omitempty"`
}

// GuardSpec are the bounds of the deletion guard: a revision that deletes more
// than both numbers allow is held.
type GuardSpec struct {
	// Objects is the number of objects; default 10.
	Objects *int `json:"objects,omitempty"`
	// Percent is the share of the objects of one kind, 0 to 100; default 10.
	Percent *int `json:"percent,omitempty"`
}

// NetworkSpec are the cluster's addresses.
type NetworkSpec struct {
	// ServiceCIDR default 10.96.0.0/16.
	ServiceCIDR string `json:"serviceCIDR,omitempty"`
	// PodCIDR default 10.244.0.0/16; every node gets a /24 of it.
	PodCIDR string `json:"podCIDR,omitempty"`
	// Domain of the cluster's DNS; default cluster.local.
	Domain string `json:"domain,omitempty"`
	// NodePorts as "low-high"; default 30000-32767.
	NodePorts string `json:"nodePorts,omitempty"`
	// Overlay is how packets travel between nodes: "vxlan" (default), "routes"
	// (nodes that share a link) or "wireguard".
	Overlay string `json:"overlay,omitempty"`
}

// DeepCopyObject implements runtime.Object.
func (c *Cluster) DeepCopyObject() runtime.Object {
	out := *c
	c.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	if c.Spec.Guard != nil {
		guard := *c.Spec.Guard
		out.Spec.Guard = &guard
	}
	if c.Spec.Network != nil {
		network := *c.Spec.Network
		out.Spec.Network = &network
	}
	if c.Spec.Nodes != nil {
		nodes := *c.Spec.Nodes
		out.Spec.Nodes = &nodes
	}
	if c.Spec.Placement != nil {
		placement := *c.Spec.Placement
		out.Spec.Placement = &placement
	}
	if c.Spec.PodSecurity != nil {
		security := *c.Spec.PodSecurity
		out.Spec.PodSecurity = &security
	}
	if c.Spec.Storage != nil {
		storage := *c.Spec.Storage
		out.Spec.Storage = &storage
	}
	if c.Spec.Metrics != nil {
		metrics := *c.Spec.Metrics
		metrics.Queries = maps.Clone(metrics.Queries)
		out.Spec.Metrics = &metrics
	}
	if c.Spec.ServiceAccounts != nil {
		accounts := *c.Spec.ServiceAccounts
		out.Spec.ServiceAccounts = &accounts
	}
	return &out
}

// Settings are a Cluster object's effective values.
type Settings struct {
	// WarnUnsupported turns unsupported kinds and fields into warnings.
	WarnUnsupported bool
	Guard           Guard
	Network         Network
	Nodes           Nodes
	// Placement is "pack" or "spread".
	Placement string
	// EnforcePodSecurity is the level that namespaces without a label of their
	// own are held to: "privileged", "baseline" or "restricted".
	EnforcePodSecurity string
	// KeepData is how long data outlives its claim when its reclaim rule is Delete.
	KeepData time.Duration
	// Prometheus is the address of the metrics' source, empty for none; Queries
	// are PromQL by the name of the metric.
	Prometheus string
	Queries    map[string]string
	// Issuer of service-account tokens; empty for the default of the domain.
	Issuer string
}

// TokenIssuer names who signs service-account tokens, a URL.
func (s Settings) TokenIssuer() string {
	if s.Issuer != "" {
		return s.Issuer
	}
	return "https://kubernetes.default.svc." + s.Network.Domain
}

// Guard holds a revision that deletes more than Objects objects and more than
// Percent percent of the objects of a kind.
type Guard struct {
	Objects int
	Percent int
}

// Nodes says what becomes of pods whose node is not heard of. Comparable.
type Nodes struct {
	SilentAfter, Tolerate, Lease time.Duration
	// Failover is "fenced", "wait", or empty for what the servers' number says.
	Failover string
}

// FailoverAnnotation says of a workload, or of the pods of a template, what is
// Nodes.Failover for the cluster: FailoverFenced or FailoverWait.
const (
	FailoverAnnotation = "tallyman.dev/failover"
	FailoverFenced     = "fenced"
	FailoverWait       = "wait"
)

// Network are the cluster's addresses. Comparable.
type Network struct {
	Services netip.Prefix
	Pods     netip.Prefix
	// Domain without a final dot.
	Domain string
	// NodePortLow and NodePortHigh are both inclusive.
	NodePortLow, NodePortHigh uint16
	// Overlay is "vxlan", "routes" or "wireguard".
	Overlay string
}

// DefaultSettings are those of a repository without a Cluster object.
func DefaultSettings() Settings {
	return Settings{
		Guard: Guard{Objects: 10, Percent: 10},
		Network: Network{
			Services:     netip.MustParsePrefix("10.96.0.0/16"),
			Pods:         netip.MustParsePrefix("10.244.0.0/16"),
			Domain:       "cluster.local",
			NodePortLow:  30000,
			NodePortHigh: 32767,
			Overlay:      "vxlan",
		},
		Nodes:              Nodes{SilentAfter: 4 * time.Second, Lease: 6 * time.Second},
		Placement:          "pack",
		EnforcePodSecurity: "privileged",
		KeepData:           24 * time.Hour,
	}
}
