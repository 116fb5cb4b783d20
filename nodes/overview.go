package nodes

import (
	"time"

	"github.com/tallyman-dev/tallyman/desired"
)

// Overview is what runs against what should, at one instant: the value behind
// the status page, `tally status` and the watch of a push. Its JSON form is an
// outward contract. Immutable.
type Overview struct {
	// Serial grows with every change; a watcher asks for what is newer.
	Serial  uint64    `json:"serial"`
	At      time.Time `json:"at"`
	Version string    `json:"version"`

	Sync Sync `json:"sync"`
	// InForce is the revision that the cluster follows; nil before the first.
	InForce *desired.Revision `json:"in_force"`
	// Outcome of the revision in force so far.
	Outcome Outcome `json:"outcome"`
	// Rejected is the newest revision when it was refused, Held when the guard
	// holds it; nil otherwise.
	Rejected *Rejection `json:"rejected,omitempty"`
	Held     *Hold      `json:"held,omitempty"`
	// Problems are the warnings and notes of the revision in force.
	Problems []desired.Problem `json:"problems"`

	// Issuer of service-account tokens; empty before the first revision.
	Issuer string `json:"issuer,omitempty"`

	Nodes    []NodeOverview    `json:"nodes"`
	Objects  []ObjectHealth    `json:"objects"`
	Services []ServiceOverview `json:"services"`
	Plan     PlanOverview      `json:"plan"`
	History  []HistoryEntry    `json:"history"`
}

// NodeOverview is a node as the cluster sees it: with the labels and taints that
// Git gives it, and those that follow from its state.
type NodeOverview struct {
	NodeState
	// Pods that count on it, and what they request: CPU in thousandths of a core,
	// memory in bytes.
	Pods            int   `json:"pods"`
	RequestedCPU    int64 `json:"requested_cpu"`
	RequestedMemory int64 `json:"requested_memory"`
	// Leaving are the pods that are to leave it, for it is drained.
	Leaving int `json:"leaving,omitempty"`
	// Notes are sentences about what is special: cordon, drain, silence.
	Notes []string `json:"notes,omitempty"`
}

// Sync is how the repository is followed.
type Sync struct {
	// Repo is the address without credentials, or "embedded".
	Repo   string `json:"repo"`
	Branch string `json:"branch"`
	Path   string `json:"path"`
	// State is "synced", "fetching", "unreachable", "rejected", "held",
	// "waiting" (no revision yet) or "stalled" (the record can't be written).
	State string `json:"state"`
	// Message is one sentence for any State but synced.
	Message string `json:"message,omitempty"`
	// Fetched is the last time that the repository answered; Next the next attempt.
	Fetched time.Time `json:"fetched,omitzero"`
	Next    time.Time `json:"next,omitzero"`
	// Rewritten tells that the newest revision does not descend from the one before.
	Rewritten bool `json:"rewritten,omitempty"`
}

// Rejection is a revision that was refused as a whole.
type Rejection struct {
	Revision desired.Revision  `json:"revision"`
	Problems []desired.Problem `json:"problems"`
}

// Hold is a revision that would delete more than the guard allows.
type Hold struct {
	Revision desired.Revision `json:"revision"`
	// Deletes are the objects that would go.
	Deletes []desired.Key `json:"deletes"`
	// Why is one sentence; Confirm is the commit trailer that releases it.
	Why     string `json:"why"`
	Confirm string `json:"confirm"`
}

// Health of an object.
type Health string

const (
	// Healthy: as the manifest says.
	Healthy Health = "healthy"
	// Progressing: on its way.
	Progressing Health = "progressing"
	// Degraded: it will not get there by itself, or not in time.
	Degraded Health = "degraded"
	// Suspended: paused in Git.
	Suspended Health = "suspended"
)

// ObjectHealth is one object: from Git, or made by Tallyman for one (ReplicaSet, Pod).
type ObjectHealth struct {
	Key desired.Key `json:"key"`
	// From says where Git has it; zero for objects that Tallyman made.
	From desired.Place `json:"from,omitzero"`
	// Owner of an object that Tallyman made; zero for objects from Git.
	Owner  desired.Key `json:"owner,omitzero"`
	Health Health      `json:"health"`
	// Reason is one sentence when not Healthy.
	Reason string `json:"reason,omitempty"`
	// Wanted, Updated, Ready and Available count pods; only for workloads.
	Wanted    int       `json:"wanted,omitempty"`
	Current   int       `json:"current,omitempty"`
	Updated   int       `json:"updated,omitempty"`
	Ready     int       `json:"ready,omitempty"`
	Available int       `json:"available,omitempty"`
	Created   time.Time `json:"created,omitzero"`
	// Template names the pod template: of a ReplicaSet, or the newest one of a workload.
	Template string `json:"template,omitempty"`
	// Pod is set for pods.
	Pod *PodOverview `json:"pod,omitempty"`
	// Storage is set for PersistentVolumeClaims, PersistentVolumes, VolumeSnapshots
	// and what these hold.
	Storage *StorageOverview `json:"storage,omitempty"`
	// Job is set for Jobs, CronJob for CronJobs, once they were looked at.
	Job     *JobOverview     `json:"job,omitempty"`
	CronJob *CronJobOverview `json:"cron_job,omitempty"`
	// Autoscaler is set for HorizontalPodAutoscalers.
	Autoscaler *AutoscalerOverview `json:"autoscaler,omitempty"`
}

// StorageOverview is what pages show of a claim or a volume.
type StorageOverview struct {
	// Phase in Kubernetes' words: Pending, Bound or Lost for a claim; Pending,
	// Available, Bound, Released or Failed for a volume; Pending or Ready for a
	// snapshot.
	Phase string `json:"phase"`
	// Volume of a claim or snapshot, Claim of a volume: of a released one, the last.
	Volume string      `json:"volume,omitempty"`
	Claim  desired.Key `json:"claim,omitzero"`
	Class  string      `json:"class,omitempty"`
	// Capacity as a quantity: what it has, or is to have while nobody knows.
	Capacity    string   `json:"capacity,omitempty"`
	AccessModes []string `json:"access_modes,omitempty"`
	// Node that holds the data; empty where any node can reach it.
	Node string `json:"node,omitempty"`
	// Unenforced says why programs can write more than the capacity.
	Unenforced string `json:"unenforced,omitempty"`
	// Until is when the data of a released volume is deleted; zero for never.
	Until time.Time `json:"until,omitzero"`
	// Pods that are on a node and mount the claim, by name.
	Pods []string `json:"pods,omitempty"`
}

// AutoscalerOverview is what a HorizontalPodAutoscaler has found and decided.
type AutoscalerOverview struct {
	Target desired.Key `json:"target"`
	// Replicas that the target is to have; 0 while nothing is known of it.
	Replicas int `json:"replicas"`
	Min      int `json:"min"`
	Max      int `json:"max"`
	// Metrics in the order of the object.
	Metrics []MetricOverview `json:"metrics,omitempty"`
	// Scaled is when it last gave the target another size; zero for never, or
	// not in living memory.
	Scaled time.Time `json:"scaled,omitzero"`
	// Problem says why it cannot judge, Limits what keeps it from the number that
	// the metrics propose: Kubernetes' word and sentence.
	Problem string   `json:"problem,omitempty"`
	Limits  []string `json:"limits,omitempty"`
}

// MetricOverview is one metric of an autoscaler, as it last read it.
type MetricOverview struct {
	Name string `json:"name"`
	// Current and Target as people write them: "45%", "1500m"; Current is empty
	// while there is no value.
	Current string `json:"current,omitempty"`
	Target  string `json:"target"`
}

// JobOverview is the status of a Job's run, in Kubernetes' words.
type JobOverview struct {
	// Completions wanted; 0 when any one success will do.
	Completions int `json:"completions"`
	Active      int `json:"active"`
	Succeeded   int `json:"succeeded"`
	Failed      int `json:"failed"`
	// CompletedIndexes and FailedIndexes of an Indexed Job: "0,2-5".
	CompletedIndexes string `json:"completed_indexes,omitempty"`
	FailedIndexes    string `json:"failed_indexes,omitempty"`
	// Condition is "Complete" or "Failed" once the run has ended, with Reason.
	Condition string    `json:"condition,omitempty"`
	Reason    string    `json:"reason,omitempty"`
	Started   time.Time `json:"started,omitzero"`
	Finished  time.Time `json:"finished,omitzero"`
}

// CronJobOverview is the status of a CronJob.
type CronJobOverview struct {
	Schedule string `json:"schedule"`
	// TimeZone is empty for UTC.
	TimeZone  string `json:"time_zone,omitempty"`
	Suspended bool   `json:"suspended,omitempty"`
	// Active counts its Jobs that are at work.
	Active int `json:"active"`
	// Last and Next are scheduled times; Succeeded is when a run last completed.
	Last      time.Time `json:"last,omitzero"`
	Next      time.Time `json:"next,omitzero"`
	Succeeded time.Time `json:"succeeded,omitzero"`
}

// PodOverview is what pages show of a pod.
type PodOverview struct {
	UID      UID       `json:"uid"`
	Node     string    `json:"node,omitempty"`
	IP       string    `json:"ip,omitempty"`
	Revision string    `json:"revision"`
	Stopping bool      `json:"stopping,omitempty"`
	Status   PodStatus `json:"status"`
	// Images of its containers in order.
	Images []string `json:"images,omitempty"`
}

// ServiceOverview is a service with its endpoints.
type ServiceOverview struct {
	Key        desired.Key   `json:"key"`
	Type       string        `json:"type"`
	ClusterIPs []string      `json:"cluster_ips,omitempty"`
	External   string        `json:"external,omitempty"`
	Ports      []ServicePort `json:"ports,omitempty"`
	// HealthCheckPort is where every node tells load balancers whether it has endpoints.
	HealthCheckPort uint16 `json:"health_check_port,omitempty"`
}

// ServicePort is one port of a service with the endpoints behind it.
type ServicePort struct {
	Name      string   `json:"name,omitempty"`
	Protocol  string   `json:"protocol"`
	Port      uint16   `json:"port"`
	NodePort  uint16   `json:"node_port,omitempty"`
	Endpoints []string `json:"endpoints"`
	// NotReady counts matching pods that get no traffic yet.
	NotReady int `json:"not_ready,omitempty"`
}

// PlanOverview is the plan in progress.
type PlanOverview struct {
	// Difference is what the revision changes, Actions what was done in the
	// newest step, Waiting what is still to come and why.
	Difference []string      `json:"difference"`
	Actions    []string      `json:"actions"`
	Waiting    []WaitingItem `json:"waiting"`
	Converged  bool          `json:"converged"`
}

// WaitingItem is one thing the plan waits for.
type WaitingItem struct {
	Object desired.Key `json:"object"`
	// Reason is one sentence.
	Reason   string    `json:"reason"`
	Deadline time.Time `json:"deadline,omitzero"`
}

// Outcome of a revision.
type Outcome string

const (
	OutcomePending    Outcome = "pending"
	OutcomeConverged  Outcome = "converged"
	OutcomeFailed     Outcome = "failed"
	OutcomeRejected   Outcome = "rejected"
	OutcomeHeld       Outcome = "held"
	OutcomeSuperseded Outcome = "superseded"
)

// HistoryEntry is one revision that was seen and what became of it.
type HistoryEntry struct {
	Revision desired.Revision `json:"revision"`
	Outcome  Outcome          `json:"outcome"`
	// Message is one sentence: what failed, who superseded, which silent node may
	// not route to what converged.
	Message string `json:"message,omitempty"`
	// Seen is when Tallyman noticed it, Ended when the outcome was final.
	Seen  time.Time `json:"seen"`
	Ended time.Time `json:"ended,omitzero"`
	// Problems counts those of a rejected revision.
	Problems int `json:"problems,omitempty"`
}
