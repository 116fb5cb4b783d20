// Package runtime is the port to whatever runs containers on a node. The agent
// speaks to it; nodes/runtime/containerd is the real one, nodes/runtime/fake a
// small world of its own for the simulator. Both pass the suite in
// nodes/runtime/runtimetest.
//
// The port deals in single containers that share namespaces made elsewhere
// (nodes/network): it knows nothing of pods beyond the Pod label that groups a
// pod's containers under one shim. Every call is idempotent: what is already
// so is success.
package runtime

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
)

var (
	// ErrNotFound is returned when the container, image or process does not exist.
	ErrNotFound = errors.New("not found")
	// ErrUnavailable is returned while the runtime does not answer; the caller
	// tries again when Events reports it back.
	ErrUnavailable = errors.New("container runtime unavailable")
	// ErrNoHandler is returned by Start when the node has no program for the
	// container's Handler. The container stays created and may be started again.
	ErrNoHandler = errors.New("no such runtime handler on this node")
)

// Runtime makes, starts, watches and removes containers. Safe for concurrent
// use. Everything it makes bears the labels of its Container and is found
// again by List after any crash.
type Runtime interface {
	// Info describes the runtime ("containerd 1.6.20") or returns ErrUnavailable.
	Info(ctx context.Context) (Info, error)

	// Image resolves a local image by reference; ErrNotFound when it is not here.
	Image(ctx context.Context, ref string) (Image, error)
	// Pull fetches and unpacks an image. Concurrent pulls of one reference share the work.
	Pull(ctx context.Context, ref string, options PullOptions) (Image, error)
	// Images lists what is here.
	Images(ctx context.Context) ([]Image, error)
	// RemoveImage removes all names of an image by its ID; containers keep what they run on.
	RemoveImage(ctx context.Context, id string) error

	// MountImage mounts the root file system of an image that is here on a
	// directory of the host, read-only and noexec. The owner keeps the content,
	// even of an image that is removed, until ReleaseImages.
	MountImage(ctx context.Context, owner, ref, dir string) error
	// ReleaseImages gives back what MountImage keeps for an owner, for all when
	// owner is empty. The caller has unmounted it.
	ReleaseImages(ctx context.Context, owner string) error

	// Create makes a container with its root file system, but starts nothing.
	// Creating the same ID again is success.
	Create(ctx context.Context, c Container) error
	// Start runs it. Starting a running container is success; one that has
	// ended is not started again (make a new one).
	Start(ctx context.Context, id string) error
	// Kill sends a signal to the container's first process (all processes when
	// the signal is SIGKILL). A container that has ended is success.
	Kill(ctx context.Context, id string, signal string) error
	// Delete removes the container, its task and its root file system, killing it if need be.
	Delete(ctx context.Context, id string) error
	// List returns every container that this instance ever made and did not delete.
	List(ctx context.Context) ([]Status, error)
	// Status of one container; ErrNotFound when it does not exist.
	Status(ctx context.Context, id string) (Status, error)
	// Exec runs a command inside a running container and returns its exit code.
	// Output (both streams, at most 64 KiB) goes to w, which may be nil. When
	// ctx ends the command is killed.
	Exec(ctx context.Context, id string, command []string, w io.Writer) (int, error)
	// Update changes cpu and memory of a running container in place.
	Update(ctx context.Context, id string, r Resources) error
	// Usage reads the container's consumption.
	Usage(ctx context.Context, id string) (Usage, error)

	// Written is what a container's root file system holds beyond its image.
	Written(ctx context.Context, id string) (nodes.DiskUsage, error)

	// Events yields exits and reconnections until ctx ends; the channel is
	// closed then. After a Reconnected event the receiver must List again, for
	// events may have been lost.
	Events(ctx context.Context) <-chan Event
}

// Info describes a runtime.
type Info struct {
	Name    string
	Version string
}

// Image is one image on the node.
type Image struct {
	// ID is the digest of the image's configuration, Digest that of the
	// manifest it was pulled by ("sha256:…").
	ID     string
	Digest string
	// Names it is known by, as nodes.ImageName gives them.
	Names []string
	// Size of its unpacked and packed content in bytes, as far as known.
	Size int64
	// Config is what the image says about its process.
	Config ImageConfig
}

// ImageConfig is the image's own idea of how it runs.
type ImageConfig struct {
	Entrypoint []string
	Cmd        []string
	Env        []string
	WorkingDir string
	// User as "uid", "uid:gid", "name" or "name:group".
	User       string
	StopSignal string
	Volumes    []string
}

// PullOptions for Pull.
type PullOptions struct {
	// Auths are tried for the registry in order; the first that fits is used.
	Auths []Auth
	// Progress, when set, is called with bytes done and in total, now and then.
	Progress func(done, total int64)
}

// Auth is one registry login.
type Auth struct {
	// Registry is a host, with port if not the default, optionally a path prefix.
	Registry string
	Username string
	Password string
	// IdentityToken is used instead of a password when set.
	IdentityToken string
}

// Container says how one container is to be made: everything resolved, nothing
// left to default but what is documented here.
type Container struct {
	// ID is unique on the node; [a-zA-Z0-9_.-]+.
	ID string
	// Pod groups containers under one shim.
	Pod string
	// Handler is what runs the container, by the name that a RuntimeClass gives
	// it; empty for runc. A pod's containers have the same.
	Handler string
	// Labels are kept and returned by List.
	Labels map[string]string
	// Image is a reference that Image resolves (a name or an ID).
	Image string

	// Args is the whole command line, Env "K=V" in order: the image's
	// configuration is already merged in.
	Args []string
	Env  []string
	// Dir must be absolute.
	Dir string

	// User as "uid", "uid:gid", "name" or "name:group", resolved in the image's
	// /etc/passwd and /etc/group. Empty is root.
	User string
	// Group overrides the primary group when not nil.
	Group *int64
	// Groups are supplemental groups beyond those that the image's /etc/group gives the user.
	Groups []int64
	// StrictGroups leaves out the groups that the image's /etc/group gives the user.
	StrictGroups bool

	Hostname string
	Terminal bool
	Stdin    bool

	// Namespaces to join by path; the empty path of IPC, Network or UTS means
	// the host's, that of PID a new one unless HostPID is set.
	Network string
	IPC     string
	UTS     string
	PID     string
	HostPID bool

	Mounts  []Mount
	Devices []Device
	// CDI are devices by their names ("vendor.com/gpu=0") in the node's CDI specs,
	// which say what each of them needs.
	CDI []string

	Resources Resources
	// HugePages are what it may use of huge pages, in bytes by the size of a page
	// in bytes; none of a size that is not there. Machines without control groups
	// for huge pages cannot hold it to that.
	HugePages    map[int64]int64
	CgroupParent string
	// OOMScoreAdj is applied as far as the machine allows.
	OOMScoreAdj int
	Sysctls     map[string]string

	Security Security

	// Stdout and Stderr are the paths of named pipes that somebody reads.
	Stdout, Stderr string
}

// Mount is one mount in a container.
type Mount struct {
	// Source on the host; with Type "tmpfs" unused.
	Source      string
	Destination string
	// Type is "bind" (default), "tmpfs", "proc", "sysfs", "mqueue", "devpts", "cgroup".
	Type    string
	Options []string
}

// Device is a host device made available inside.
type Device struct {
	HostPath      string
	ContainerPath string
	// Permissions such as "rwm".
	Permissions string
}

// Resources in the kernel's units; 0 means no limit (or the kernel's default).
type Resources struct {
	// CPUShares as in cgroup v1, 2..262144; converted for v2.
	CPUShares uint64
	// CPUQuota and CPUPeriod in microseconds.
	CPUQuota  int64
	CPUPeriod uint64
	// Memory in bytes.
	Memory int64
	// PidsLimit counts processes.
	PidsLimit int64
}

// Security is a container's security context, resolved.
type Security struct {
	Privileged bool
	// NoNewPrivileges is allowPrivilegeEscalation: false.
	NoNewPrivileges bool
	ReadOnlyRoot    bool
	// AddCapabilities and DropCapabilities without the CAP_ prefix; "ALL" stands for all.
	// They change the runtime's default set.
	AddCapabilities  []string
	DropCapabilities []string
	// UnmaskedProc is procMount: Unmasked.
	UnmaskedProc bool
	// Seccomp is "" (the runtime's default profile), "unconfined" or the path of a profile on this node.
	Seccomp string
	// AppArmor is "" (none), AppArmorDefault or the name of a loaded profile.
	AppArmor string
	// SELinux is the process label, empty for none.
	SELinux string
}

// AppArmorDefault is the runtime's own profile, where the machine has AppArmor.
const AppArmorDefault = "runtime/default"

// State of a container.
type State string

const (
	Created State = "created"
	Running State = "running"
	Exited  State = "exited"
)

// Status of one container.
type Status struct {
	ID      string
	Pod     string
	Labels  map[string]string
	Image   string
	ImageID string
	State   State
	// PID of the first process on the host while running.
	PID int
	// Created, Started and Finished are zero when not known or not so far.
	Created, Started, Finished time.Time
	// ExitCode when exited: 128+n for a signal n.
	ExitCode int32
	// OOMKilled tells that the kernel's memory killer ended it.
	OOMKilled bool
	// Message is one sentence when the container could not be started.
	Message string
}

// Usage of one container since it started.
type Usage struct {
	CPU    time.Duration
	Memory int64
}

// Event is something that happened without being asked for.
type Event struct {
	// Reconnected is set after the connection was lost: look at everything again.
	Reconnected bool
	// ID of a container that exited.
	ID string
	// OOM tells that the container met its memory limit (it may live on).
	OOM bool
}
