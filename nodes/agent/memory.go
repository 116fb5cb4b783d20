package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

// Memory is what a pod's machine must still know after the agent was killed.
// It is kept encrypted: it holds the environments that containers were made
// with.
type Memory struct {
	// Boot tells whether the machine was started anew since.
	Boot    string    `json:"boot"`
	Started time.Time `json:"started"`
	// IP the pod got; invalid before.
	IP netip.Addr `json:"ip,omitzero"`
	// Initialized: all init containers are through.
	Initialized bool      `json:"initialized,omitempty"`
	Ready       bool      `json:"ready,omitempty"`
	ReadySince  time.Time `json:"ready_since,omitzero"`
	// Halt is set once all containers are to end, and stays.
	Halt *Halt `json:"halt,omitempty"`
	// Ended is the final phase, empty while the pod is alive.
	Ended nodes.Phase `json:"ended,omitempty"`
	// Tokens of the pod's ServiceAccount, by what was asked for.
	Tokens map[string]nodes.Token `json:"tokens,omitempty"`
	// Images that the pod's image volumes were made from, by what they were pulled for.
	Images map[string]string `json:"images,omitempty"`
	// Runs by container name.
	Runs map[string]*Run `json:"runs,omitempty"`
}

// Halt is why and how fast all of a pod's containers end.
type Halt struct {
	Since time.Time     `json:"since"`
	Grace time.Duration `json:"grace"`
	// Forget removes the pod from the node afterwards; otherwise it stays as
	// failed, for Reason and Message.
	Forget  bool   `json:"forget,omitempty"`
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
}

// Run is one container of the pod: its newest run and what led to it.
type Run struct {
	// ID in the runtime; empty when none is there.
	ID string `json:"id,omitempty"`
	// Next is the number of the next run: ID's own number plus one.
	Next int `json:"next"`
	// Env is resolved once, for all runs.
	Env      []string `json:"env,omitempty"`
	Resolved bool     `json:"resolved,omitempty"`
	// Image is what the first run was made from, kept for all others; ImageID
	// is what is shown of it, StopSignal what it asks for.
	Image      string `json:"image,omitempty"`
	ImageID    string `json:"image_id,omitempty"`
	StopSignal string `json:"stop_signal,omitempty"`
	// Started and Ready are the outcome of the probes, Hooked that postStart is through.
	StartedAt time.Time `json:"started_at,omitzero"`
	Started   bool      `json:"started,omitempty"`
	Ready     bool      `json:"ready,omitempty"`
	Hooked    bool      `json:"hooked,omitempty"`
	// Presumed: the run was adopted without a memory and counts as ready until
	// its probes, which run at once, have said something. Otherwise every
	// service would be cut off for that moment.
	Presumed bool `json:"presumed,omitempty"`
	// Applied are the resources that the run has; nil where that is not known.
	Applied *runtime.Resources `json:"applied,omitempty"`
	// Again: the run was ended to be started anew, whatever its policy says.
	Again bool `json:"again,omitempty"`
	// Ended is how the newest run ended, Last how the one before did.
	Ended *nodes.Termination `json:"ended,omitempty"`
	Last  *nodes.Termination `json:"last,omitempty"`
	// Delay and Restarted are the crash loop's back-off. NotBefore is its end
	// where no Ended tells it.
	Delay     time.Duration `json:"delay,omitempty"`
	Restarted time.Time     `json:"restarted,omitzero"`
	NotBefore time.Time     `json:"not_before,omitzero"`
	Kill      *Kill         `json:"kill,omitempty"`
}

// Kill is the ending of one run: preStop, signal, force.
type Kill struct {
	Since   time.Time     `json:"since"`
	Grace   time.Duration `json:"grace"`
	Message string        `json:"message,omitempty"`
	// Reason, if any, is shown as that of the run's end.
	Reason string `json:"reason,omitempty"`
	// Hook is preStop: begun, and through.
	HookBegun bool `json:"hook_begun,omitempty"`
	HookDone  bool `json:"hook_done,omitempty"`
	// Signaled and Forced are when the signals were sent.
	Signaled time.Time `json:"signaled,omitzero"`
	Forced   time.Time `json:"forced,omitzero"`
}

func (k *Kill) deadline() time.Time { return k.Since.Add(k.Grace) }

// Back-off of crashing containers, as Kubernetes has it.
const (
	firstDelay = 10 * time.Second
	maxDelay   = 5 * time.Minute
	// calm is how long a run must have lasted for the back-off to begin anew.
	calm = 2 * maxDelay
)

// restartAt is the earliest instant for the next run after one that ended at
// finished. The first restart waits for nothing.
func (r *Run) restartAt(finished time.Time) time.Time {
	if r.Delay == 0 || finished.Sub(r.Restarted) > calm {
		return finished
	}
	return finished.Add(r.Delay)
}

// next is the earliest instant for the next run, zero for any.
func (r *Run) next() time.Time {
	if r.Ended != nil {
		return r.restartAt(r.Ended.FinishedAt)
	}
	return r.NotBefore
}

// restarted notes that a run follows one that ended at finished.
func (r *Run) restarted(finished, now time.Time) {
	switch {
	case r.Delay == 0 || finished.Sub(r.Restarted) > calm:
		r.Delay = firstDelay
	default:
		r.Delay = min(2*r.Delay, maxDelay)
	}
	r.Restarted = now
}

// begin notes a new run of a container, in place of the one before. Whoever
// starts it, or learns that it was started, finds all that holds from its first
// moment: an answer of the runtime may get lost.
func (r *Run) begin(c *corev1.Container, id string, attempt int, now time.Time) {
	if r.Ended != nil {
		r.restarted(r.Ended.FinishedAt, now)
		r.Last, r.Ended = r.Ended, nil
	}
	r.ID, r.Next, r.Kill, r.Again, r.NotBefore = id, attempt+1, nil, false, time.Time{}
	r.StartedAt, r.Started, r.Ready, r.Presumed = time.Time{}, false, false, false
	r.Hooked = c == nil || c.Lifecycle == nil || c.Lifecycle.PostStart == nil
}

// run returns the memory of a container, made on first use.
func (m *Memory) run(name string) *Run {
	if m.Runs == nil {
		m.Runs = map[string]*Run{}
	}
	r := m.Runs[name]
	if r == nil {
		r = &Run{}
		m.Runs[name] = r
	}
	return r
}

// rebooted forgets what a restart of the machine has undone: all containers
// have ended, and the init containers run again.
func (m *Memory) rebooted(boot string, init []string) {
	if m.Boot == boot {
		return
	}
	m.Boot = boot
	if m.Ended != "" {
		return
	}
	m.Initialized, m.Ready = false, false
	for _, r := range m.Runs { // that the machine went down was no crash of theirs
		r.Delay, r.Restarted, r.NotBefore = 0, time.Time{}, time.Time{}
	}
	for _, name := range init {
		r := m.run(name)
		if r.Ended != nil {
			r.Last, r.Ended, r.ID = r.Ended, nil, ""
		}
	}
	delete(m.Runs, pauseName)
}

// pauseName is that of the container that holds a shared process namespace;
// no container of a manifest can be called so.
const pauseName = "@pause"

// maxIDName is how much of a container's name fits into its ID: containerd
// takes 76 characters, a uid has 36, and a run's number may have 8.
const maxIDName = 30

// containerID names one run of a container in the runtime. containerd takes no
// two separators in a row, which a container's name may have.
func containerID(uid nodes.UID, name string, attempt int) string {
	name = strings.TrimPrefix(name, "@")
	if len(name) > maxIDName || strings.Contains(name, "--") {
		sum := sha256.Sum256([]byte(name))
		words := strings.FieldsFunc(name[:min(len(name), maxIDName-9)], func(r rune) bool { return r == '-' })
		name = strings.Join(append(words, hex.EncodeToString(sum[:4])), "-")
	}
	return fmt.Sprintf("%s_%s_%d", uid, name, attempt)
}

// podOf takes the pod's uid out of a container's ID.
func podOf(id string) nodes.UID {
	if i := strings.LastIndexByte(id, '_'); i > 0 {
		if j := strings.LastIndexByte(id[:i], '_'); j > 0 {
			return nodes.UID(id[:j])
		}
	}
	return ""
}

// Labels that every container bears.
const (
	labelPod         = "tallyman.dev/pod-uid"
	labelName        = "tallyman.dev/pod-name"
	labelNamespace   = "tallyman.dev/pod-namespace"
	labelContainer   = "tallyman.dev/container"
	labelAttempt     = "tallyman.dev/attempt"
	labelWorkload    = "tallyman.dev/workload"
	labelOwner       = "tallyman.dev/owner"
	labelIncarnation = "tallyman.dev/incarnation"
	labelOrdinal     = "tallyman.dev/ordinal"
	labelRevision    = "tallyman.dev/revision"
	labelTemplate    = "tallyman.dev/template"
	labelAddress     = "tallyman.dev/address"
	labelGrace       = "tallyman.dev/grace-seconds"
)

func labels(p *nodes.Pod, container string, attempt int, ip netip.Addr) map[string]string {
	l := map[string]string{
		labelPod:         string(p.UID),
		labelName:        p.Name,
		labelNamespace:   p.Namespace,
		labelContainer:   container,
		labelAttempt:     strconv.Itoa(attempt),
		labelWorkload:    p.Workload.Group + "/" + p.Workload.Kind + "/" + p.Workload.Namespace + "/" + p.Workload.Name,
		labelOwner:       p.Owner.Group + "/" + p.Owner.Kind + "/" + p.Owner.Namespace + "/" + p.Owner.Name,
		labelIncarnation: strconv.FormatUint(p.Incarnation, 10),
		labelOrdinal:     strconv.Itoa(p.Ordinal),
		labelRevision:    p.Revision,
		labelTemplate:    p.TemplateHash,
		labelGrace:       strconv.FormatInt(int64(grace(p)/time.Second), 10),
	}
	if ip.IsValid() {
		l[labelAddress] = ip.String()
	}
	return l
}

// grace is how long the manifest gives the pod to end.
func grace(p *nodes.Pod) time.Duration {
	if s := p.Template.Spec.TerminationGracePeriodSeconds; s != nil {
		return time.Duration(*s) * time.Second
	}
	return 30 * time.Second
}
