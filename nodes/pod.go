package nodes

import (
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
)

// UID identifies one pod for ever: it derives from the workload's uid, the
// template and the incarnation, and is never used twice.
type UID string

// Template is what pods are made from. Pods share it by pointer; it is
// immutable.
type Template struct {
	// Hash names the template (ten characters, as in pod-template-hash). A
	// recorded hash wins over a newly computed one.
	Hash        string            `json:"hash"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	// Spec is defaulted.
	Spec corev1.PodSpec `json:"spec"`
	// RuntimeHandler is that of the RuntimeClass that Spec names; empty for the
	// node's own.
	RuntimeHandler string `json:"runtime_handler,omitempty"`
}

// Pod is one pod that the planner decided on.
type Pod struct {
	UID       UID    `json:"uid"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Owner is the controller that made it (a ReplicaSet, say), which may
	// itself be made by Tallyman; the pod itself when it stands alone in Git.
	Owner desired.Key `json:"owner"`
	// Workload is the object in Git that all this goes back to.
	Workload desired.Key `json:"workload"`
	// Incarnation counts the pods that the workload ever had, from 1.
	Incarnation uint64 `json:"incarnation"`
	// Ordinal of a StatefulSet or Indexed Job pod, else -1.
	Ordinal int `json:"ordinal"`
	// Hostname and Subdomain, when set, stand for those of the template.
	Hostname  string `json:"hostname,omitempty"`
	Subdomain string `json:"subdomain,omitempty"`
	// Labels and Annotations are this pod's own (its ordinal, say), beside those
	// of the template; see AllLabels.
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	// Claims names the PersistentVolumeClaim behind a volume of the template, by
	// the volume's name, where it is this pod's own: one of a StatefulSet's
	// claim templates, or an ephemeral volume.
	Claims map[string]string `json:"claims,omitempty"`
	// Template is shared. In the record it is kept apart, under its Hash.
	Template     *Template `json:"-"`
	TemplateHash string    `json:"template"`
	// Node it is bound to; empty while it waits for one.
	Node string `json:"node,omitempty"`
	// Revision is the commit that first asked for this pod.
	Revision string    `json:"revision"`
	Created  time.Time `json:"created"`
	// Seal proves that the server bound this pod to this node with what it reads;
	// only the server can make or check it. Empty while it waits for a node.
	Seal []byte `json:"seal,omitempty"`
	// Stop is set once the pod is to end; it never becomes nil again.
	Stop *Stop `json:"stop,omitempty"`
}

// Stop tells an agent to end a pod: preStop hooks, the stop signal, then a
// kill when Grace is over.
type Stop struct {
	// Grace from the moment that the agent learns of it; 0 kills at once.
	Grace  time.Duration `json:"grace"`
	Reason string        `json:"reason"`
}

// Key names the pod as an object.
func (p *Pod) Key() desired.Key {
	return desired.Key{Kind: "Pod", Namespace: p.Namespace, Name: p.Name}
}

// AllLabels are the template's and the pod's own. The result is shared and
// must not be changed.
func (p *Pod) AllLabels() map[string]string { return merged(p.Template.Labels, p.Labels) }

// AllAnnotations are the template's and the pod's own. The result is shared
// and must not be changed.
func (p *Pod) AllAnnotations() map[string]string {
	return merged(p.Template.Annotations, p.Annotations)
}

// HostName gives the hostname and the subdomain that the manifest or the pod's
// workload names; each is empty when neither does.
func (p *Pod) HostName() (hostname, subdomain string) {
	hostname, subdomain = p.Template.Spec.Hostname, p.Template.Spec.Subdomain
	if p.Hostname != "" {
		hostname = p.Hostname
	}
	if p.Subdomain != "" {
		subdomain = p.Subdomain
	}
	return hostname, subdomain
}

func merged(shared, own map[string]string) map[string]string {
	if len(own) == 0 {
		return shared
	}
	all := make(map[string]string, len(shared)+len(own))
	maps.Copy(all, shared)
	maps.Copy(all, own)
	return all
}

// Claim names the PersistentVolumeClaim behind a volume of the pod's template;
// empty for a volume that has none.
func (p *Pod) Claim(v *corev1.Volume) string {
	switch {
	case p.Claims[v.Name] != "":
		return p.Claims[v.Name]
	case v.PersistentVolumeClaim != nil:
		return v.PersistentVolumeClaim.ClaimName
	case v.Ephemeral != nil:
		return p.Name + "-" + v.Name
	}
	return ""
}

// Phase is Kubernetes' pod phase.
type Phase = corev1.PodPhase

// PodStatus is what an agent reports about one pod. Compact: a cluster has
// many.
type PodStatus struct {
	UID   UID    `json:"uid"`
	Phase Phase  `json:"phase"`
	IP    string `json:"ip,omitempty"`
	// Started is when the agent first worked on the pod.
	Started time.Time `json:"started"`
	// Initialized, ContainersReady and Ready are the pod's conditions; ReadySince
	// is when Ready last changed.
	Initialized     bool      `json:"initialized"`
	ContainersReady bool      `json:"containers_ready"`
	Ready           bool      `json:"ready"`
	ReadySince      time.Time `json:"ready_since"`
	// Reason and Message say why the pod is not Ready, or why it failed
	// ("Evicted", "DeadlineExceeded", …): a word, and one sentence.
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
	// Init holds the init containers (sidecars too), Containers the others,
	// both in the order of the spec.
	Init       []ContainerStatus `json:"init,omitempty"`
	Containers []ContainerStatus `json:"containers,omitempty"`
}

// Restarts sums the restarts of all containers.
func (s *PodStatus) Restarts() int {
	n := 0
	for _, c := range s.Init {
		n += c.Restarts
	}
	for _, c := range s.Containers {
		n += c.Restarts
	}
	return n
}

// Done reports whether the pod has ended for good.
func (s *PodStatus) Done() bool {
	return s.Phase == corev1.PodSucceeded || s.Phase == corev1.PodFailed
}

// ContainerState is what a container is doing.
type ContainerState string

const (
	Waiting    ContainerState = "waiting"
	Running    ContainerState = "running"
	Terminated ContainerState = "terminated"
)

// ContainerStatus is one container of a pod.
type ContainerStatus struct {
	Name  string         `json:"name"`
	State ContainerState `json:"state"`
	// ID of the container in the runtime; empty before it was made.
	ID string `json:"id,omitempty"`
	// Image as the manifest names it; ImageID is the digest it was resolved to.
	Image   string `json:"image"`
	ImageID string `json:"image_id,omitempty"`
	// Ready and Started are the outcome of the probes.
	Ready    bool `json:"ready"`
	Started  bool `json:"started"`
	Restarts int  `json:"restarts"`
	// Reason and Message of State, in Kubernetes' words: "ContainerCreating",
	// "ImagePullBackOff", "CrashLoopBackOff", "Completed", "OOMKilled", "Error", …
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
	// StartedAt is set when running or terminated; FinishedAt, ExitCode and
	// Signal when terminated.
	StartedAt  time.Time `json:"started_at,omitzero"`
	FinishedAt time.Time `json:"finished_at,omitzero"`
	ExitCode   int32     `json:"exit_code,omitempty"`
	Signal     int32     `json:"signal,omitempty"`
	// Last is how the previous run of the container ended; nil for the first.
	Last *Termination `json:"last,omitempty"`
}

// Termination is the end of one run of a container.
type Termination struct {
	Reason     string    `json:"reason"`
	Message    string    `json:"message,omitempty"`
	ExitCode   int32     `json:"exit_code"`
	Signal     int32     `json:"signal,omitempty"`
	StartedAt  time.Time `json:"started_at"`
	FinishedAt time.Time `json:"finished_at"`
}

// Event is something that happened to an object, in Kubernetes' words.
// Repetitions raise Count and Last.
type Event struct {
	Object desired.Key `json:"object"`
	// Warning tells Kubernetes' type Warning from Normal.
	Warning bool      `json:"warning"`
	Reason  string    `json:"reason"`
	Message string    `json:"message"`
	Source  string    `json:"source"`
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
	Count   int       `json:"count"`
}
