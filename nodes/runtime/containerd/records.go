package containerd

import (
	"maps"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

// Our own labels on containerd's records. They are all that must survive us.
const (
	ownPrefix     = "runtime.tallyman.dev/"
	labelPod      = ownPrefix + "pod"
	labelHandler  = ownPrefix + "handler"
	labelImage    = ownPrefix + "image"
	labelImageID  = ownPrefix + "image-id"
	labelCgroup   = ownPrefix + "cgroup"
	labelStdout   = ownPrefix + "stdout"
	labelStderr   = ownPrefix + "stderr"
	labelTerminal = ownPrefix + "terminal"
	labelStdin    = ownPrefix + "stdin"
	// labelStarted is when Start was first tried: without a task, it tells a
	// container that is gone from one that never was.
	labelStarted = ownPrefix + "started"
	// labelFailure is why Start failed for good.
	labelFailure = ownPrefix + "failure"
)

// maxFailure keeps label and value within containerd's limit of 4096 bytes.
const maxFailure = 2048

// ours selects the records that this package made.
const ours = `labels."` + labelImageID + `"`

// known is what we remember of a container.
type known struct {
	stdio   stdio
	pod     string
	handler string
	cgroup  string
	mounts  []mount.Mount // nil when they must be asked for
	process *specs.Process
	// tried tells that Start was called before, and may have been cut short.
	tried atomic.Bool
	// begun and done count the calls of Start of this process.
	begun, done atomic.Int64
}

// starts tells how many starts of a container this process has begun, and
// whether one is under way.
func (r *Runtime) starts(id string) (begun int64, underWay bool) {
	r.mu.Lock()
	k := r.known[id]
	r.mu.Unlock()
	if k == nil {
		return 0, false
	}
	done := k.done.Load() // before begun: a start in between shows as under way
	begun = k.begun.Load()
	return begun, begun != done
}

type stdio struct {
	stdin, stdout, stderr string
	terminal              bool
}

// labels puts the caller's labels and ours on one record.
func (r *Runtime) labels(c runtime.Container, img *image, k *known) map[string]string {
	all := map[string]string{
		labelPod: c.Pod, labelHandler: c.Handler, labelImage: c.Image, labelImageID: img.ID, labelCgroup: k.cgroup,
		labelStdout: k.stdio.stdout, labelStderr: k.stdio.stderr, labelStdin: k.stdio.stdin,
	}
	if c.Terminal {
		all[labelTerminal] = "true"
	}
	maps.DeleteFunc(all, func(key, value string) bool { return value == "" })
	maps.Copy(all, c.Labels)
	return all
}

func remembered(record containers.Container) *known {
	l := record.Labels
	k := &known{
		pod: l[labelPod], handler: l[labelHandler], cgroup: l[labelCgroup],
		stdio: stdio{stdin: l[labelStdin], stdout: l[labelStdout], stderr: l[labelStderr], terminal: l[labelTerminal] != ""},
	}
	k.tried.Store(l[labelStarted] != "")
	return k
}

// theirs returns the labels that the caller gave.
func theirs(labels map[string]string) map[string]string {
	own := make(map[string]string, len(labels))
	for key, value := range labels {
		if !strings.HasPrefix(key, ownPrefix) {
			own[key] = value
		}
	}
	return own
}

func startedAt(labels map[string]string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, labels[labelStarted])
	if err != nil {
		return time.Time{}
	}
	return t
}
