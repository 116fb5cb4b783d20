package agent

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes/agent/spec"
	"github.com/tallyman-dev/tallyman/nodes/keeper"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

// Log files are rotated at this size, this many are kept.
const (
	logSize  = 10 << 20
	logFiles = 5
)

// startRun makes and starts the next run of a container, or starts one that
// was made already.
func (m *Machine) startRun(ctx context.Context, name string) error {
	r := m.memory.run(name)
	attempt := r.Next
	if r.ID != "" && r.Ended == nil && m.seen[r.ID].State == runtime.Created {
		attempt = r.Next - 1
	}
	c, err := m.container(name, r, attempt)
	if err != nil {
		return err
	}
	if err := m.equip(ctx, name, &c); err != nil {
		return err
	}
	if err := m.prepareLog(name, attempt); err != nil {
		return err
	}
	pipes, err := m.keeper.OpenLog(ctx, keeper.Log{ID: c.ID, Path: m.logPath(name, attempt), MaxSize: logSize, MaxFiles: logFiles})
	if err != nil {
		return fmt.Errorf("open log of container %s: %w", name, err)
	}
	c.Stdout, c.Stderr = pipes.Stdout, pipes.Stderr
	if m.node.unleased(m.pod.UID) {
		return errors.Join(errNoLease, m.keeper.CloseLog(ctx, c.ID))
	}
	if err := answered(ctx, func(ctx context.Context) error { return m.runtime.Create(ctx, c) }); err != nil {
		return errors.Join(created(err), m.abandon(ctx, name, c.ID, err))
	}
	m.made(name, r, c, attempt)
	if name != pauseName {
		m.event(false, "Created", "Container created: %s", name)
	}
	// Whoever is stopped between here and the start finds its container killed:
	// the keeper kills what it finds in the pod's groups at the end of the lease.
	if m.node.unleased(m.pod.UID) {
		return errNoLease
	}
	if err := answered(ctx, func(ctx context.Context) error { return m.runtime.Start(ctx, c.ID) }); err != nil {
		return m.startFailed(ctx, name, r, err)
	}
	s := m.seen[c.ID]
	s.State, s.Started = runtime.Running, m.now()
	m.seen[c.ID] = s
	m.started(name, r, s.Started)
	if name != pauseName {
		return nil
	}
	// The others join its process namespace by its number on the host.
	s, err = m.runtime.Status(ctx, c.ID)
	if err != nil {
		return fmt.Errorf("look at pause container: %w", err)
	}
	m.seen[c.ID] = s
	return nil
}

// errNoLease is returned when the lease ended while a fenced pod was being
// started.
var errNoLease = &containerError{waitingForLease, errors.New(leaseMessage)}

// waitingForLease and leaseMessage say why a fenced pod does not start.
const (
	waitingForLease = "WaitingForLease"
	leaseMessage    = "waits for the node's lease: a fenced pod runs only while the server renews it"
)

func created(err error) error {
	if errors.Is(err, runtime.ErrUnavailable) {
		return err
	}
	return &containerError{"CreateContainerError", err}
}

// abandon closes the pipes of a container that could not be made. When its
// image is gone, the image is looked for again, and what was made of the
// container goes too: it says what the old image asked for.
func (m *Machine) abandon(ctx context.Context, name, id string, why error) error {
	if errors.Is(why, runtime.ErrNotFound) {
		delete(m.images, imageOwner(&m.pod.Template.Spec, name))
		return m.deleteContainer(ctx, id)
	}
	if err := m.keeper.CloseLog(ctx, id); err != nil {
		m.log.Warn("close log", "container_id", id, "err", err)
	}
	return nil
}

// prepareLog makes the log's directory and removes logs before the previous run.
func (m *Machine) prepareLog(name string, attempt int) error {
	path := m.logPath(name, attempt)
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return fmt.Errorf("make log directory: %w", err)
	}
	if attempt >= 2 {
		old, _ := filepath.Glob(m.logPath(name, attempt-2) + "*")
		for _, path := range old {
			if err := os.Remove(path); err != nil {
				m.log.Warn("remove old log", "path", path, "err", err)
			}
		}
	}
	return nil
}

// made notes a new run.
func (m *Machine) made(name string, r *Run, c runtime.Container, attempt int) {
	r.begin(spec.Find(&m.pod.Template.Spec, name), c.ID, attempt, m.now())
	image := m.imageFor(name)
	r.Applied = &c.Resources
	r.Image, r.ImageID, r.StopSignal = image.ID, cmp.Or(image.Digest, image.ID), image.Config.StopSignal
	m.seen[c.ID] = runtime.Status{ID: c.ID, Labels: c.Labels, State: runtime.Created, Created: m.now()}
}

// started notes that the process of a run was started.
func (m *Machine) started(name string, r *Run, at time.Time) {
	r.StartedAt = at
	if name != pauseName {
		m.event(false, "Started", "Container started: %s", name)
	}
	m.log.Info("container started", "container", name, "container_id", r.ID)
}

// startFailed counts a container that cannot start as one that ended at once,
// as Kubernetes does, so that it is tried again with the same back-off.
func (m *Machine) startFailed(ctx context.Context, name string, r *Run, err error) error {
	if errors.Is(err, runtime.ErrUnavailable) || ctx.Err() != nil {
		return err
	}
	if errors.Is(err, errNoAnswer) {
		return &containerError{"RunContainerError", err} // it may run yet: the same run is tried again
	}
	if errors.Is(err, runtime.ErrNoHandler) {
		return &containerError{"CreateContainerError", err}
	}
	id := r.ID
	m.event(true, "Failed", "Error: %s", err)
	s := m.seen[id]
	s.State, s.ExitCode, s.Started, s.Finished = runtime.Exited, 128, m.now(), m.now()
	m.seen[id] = s
	r.StartedAt = s.Started
	if err := m.collectRun(ctx, name); err != nil {
		return err
	}
	if r.Ended != nil {
		r.Ended.Reason, r.Ended.Message, r.Ended.Signal = "StartError", err.Error(), 0
	}
	return nil
}

// container puts together all that the runtime must know.
func (m *Machine) container(name string, r *Run, attempt int) (runtime.Container, error) {
	if name == pauseName {
		return m.pauseContainer(attempt)
	}
	s := &m.pod.Template.Spec
	c := spec.Find(s, name)
	image := m.images[name]
	env, err := m.environment(c, r)
	if err != nil {
		return runtime.Container{}, &containerError{"CreateContainerConfigError", err}
	}
	who, err := spec.Who(s, c, image.Config.User)
	if err != nil {
		return runtime.Container{}, &containerError{"CreateContainerConfigError", err}
	}
	out := m.common(name, attempt)
	out.Image = cmp.Or(image.ID, c.Image)
	out.Args, out.Env, out.Dir, err = spec.Process(c, env, image.Config, out.Hostname)
	if err != nil {
		return runtime.Container{}, &containerError{"CreateContainerConfigError", err}
	}
	out.User, out.Group, out.Groups, out.StrictGroups = who.User, who.Group, who.Groups, who.Strict
	out.Terminal, out.Stdin = c.TTY, c.Stdin
	out.Resources, out.HugePages = spec.Limits(s, c), spec.HugePages(s, c)
	out.OOMScoreAdj = spec.OOMScore(s, c, m.node.memory)
	out.Security = spec.Security(s, c, m.node.seccomp)
	if out.Devices, err = m.volumeDevices(c); err != nil {
		return runtime.Container{}, &containerError{"CreateContainerConfigError", err}
	}
	out.Mounts, err = m.containerMounts(c, env, out.ID)
	if err != nil {
		return runtime.Container{}, &containerError{"CreateContainerConfigError", err}
	}
	return out, nil
}

// common is what all containers of the pod have alike.
func (m *Machine) common(name string, attempt int) runtime.Container {
	s := &m.pod.Template.Spec
	out := runtime.Container{
		ID:      containerID(m.pod.UID, name, attempt),
		Pod:     string(m.pod.UID),
		Handler: m.pod.Template.RuntimeHandler,
		Labels:  labels(m.pod, name, attempt, m.memory.IP),
		Network: m.net.NetNS, IPC: m.net.IPC, UTS: m.net.UTS,
		HostPID:      s.HostPID,
		Hostname:     m.hostname(),
		CgroupParent: spec.CgroupParent(m.pod),
	}
	if sharesPID(s) && name != pauseName {
		if pause := m.memory.Runs[pauseName]; pause != nil {
			out.PID = "/proc/" + strconv.Itoa(m.seen[pause.ID].PID) + "/ns/pid"
		}
	}
	return out
}

// hostname is what the pod's programs are told: that of the node in a pod on
// the host's network. attach has refused what the kernel would not take.
func (m *Machine) hostname() string {
	if m.pod.Template.Spec.HostNetwork {
		if h, err := os.Hostname(); err == nil {
			return h
		}
	}
	name, err := spec.KernelHostname(m.pod, m.node.cluster().Domain)
	if err != nil {
		return spec.Hostname(m.pod)
	}
	return name
}

// pauseContainer holds the process namespace that a pod's containers share: our
// own program, reaping, on the first container's image.
func (m *Machine) pauseContainer(attempt int) (runtime.Container, error) {
	if len(m.node.pause) == 0 {
		return runtime.Container{}, errors.New("shareProcessNamespace: the agent was given no pause program")
	}
	const inside = "/.tally-pause"
	out := m.common(pauseName, attempt)
	image := m.imageFor(pauseName)
	out.Image = cmp.Or(image.ID, m.pod.Template.Spec.Containers[0].Image)
	out.Args = append([]string{inside}, m.node.pause[1:]...)
	out.Env, out.Dir = []string{"GOMAXPROCS=1"}, "/"
	out.Resources = runtime.Resources{CPUShares: 2}
	out.Security = runtime.Security{NoNewPrivileges: true, ReadOnlyRoot: true, DropCapabilities: []string{"ALL"}}
	out.Mounts = []runtime.Mount{{Source: m.node.pause[0], Destination: inside, Type: "bind", Options: []string{"bind", "ro"}}}
	return out, nil
}

// imageFor is the image that a container runs on.
func (m *Machine) imageFor(name string) runtime.Image {
	return m.images[imageOwner(&m.pod.Template.Spec, name)]
}

// imageOwner names the container whose image a container runs on.
func imageOwner(s *corev1.PodSpec, name string) string {
	if name == pauseName {
		return s.Containers[0].Name
	}
	return name
}

// environment is resolved for the first run and kept for all others.
func (m *Machine) environment(c *corev1.Container, r *Run) ([]string, error) {
	if r.Resolved {
		return r.Env, nil
	}
	env, err := m.context().Environment(c)
	if err != nil {
		return nil, err
	}
	r.Env, r.Resolved = env, true
	return env, nil
}

// containerMounts are the pod's volumes and files as the container sees them.
func (m *Machine) containerMounts(c *corev1.Container, env []string, id string) ([]runtime.Mount, error) {
	mounts, err := m.podMounts(c, id)
	if err != nil {
		return nil, err
	}
	for i := range c.VolumeMounts {
		mount, err := m.volumeMount(c, i, env)
		if err != nil {
			return nil, err
		}
		// What the manifest mounts replaces what every pod gets.
		mounts = slices.DeleteFunc(mounts, func(o runtime.Mount) bool { return o.Destination == mount.Destination })
		mounts = append(mounts, mount)
	}
	depth := func(m runtime.Mount) int { return strings.Count(filepath.Clean(m.Destination), "/") }
	slices.SortStableFunc(mounts, func(a, b runtime.Mount) int { return depth(a) - depth(b) })
	return mounts, nil
}

func (m *Machine) volumeMount(c *corev1.Container, i int, env []string) (runtime.Mount, error) {
	v := &c.VolumeMounts[i]
	made, found := m.mounts[v.Name]
	if !found {
		return runtime.Mount{}, fmt.Errorf("volume mount %s: the pod has no volume %q", v.MountPath, v.Name)
	}
	if made.Device != "" {
		return runtime.Mount{}, fmt.Errorf("volume mount %s: volume %q has volumeMode Block: list it under volumeDevices", v.MountPath, v.Name)
	}
	path, sub := made.Path, v.SubPath
	if v.SubPathExpr != "" {
		var err error
		if sub, err = spec.ExpandPath(v.SubPathExpr, env); err != nil {
			return runtime.Mount{}, err
		}
	}
	if sub != "" {
		var err error
		if path, err = m.volumes.SubPath(m.pod.UID, made, c.Name, i, sub); err != nil {
			return runtime.Mount{}, err
		}
	}
	options := []string{"rbind", "rw", propagation(v.MountPropagation)}
	if v.ReadOnly || made.ReadOnly {
		options[1] = "ro"
	}
	if made.NoExec {
		options = append(options, "noexec")
	}
	if r := v.RecursiveReadOnly; r != nil && *r == corev1.RecursiveReadOnlyEnabled {
		options = append(options, "rro")
	}
	destination := v.MountPath
	if !filepath.IsAbs(destination) {
		destination = "/" + destination
	}
	return runtime.Mount{Source: path, Destination: filepath.Clean(destination), Type: "bind", Options: options}, nil
}

func propagation(mode *corev1.MountPropagationMode) string {
	switch {
	case mode == nil:
	case *mode == corev1.MountPropagationHostToContainer:
		return "rslave"
	case *mode == corev1.MountPropagationBidirectional:
		return "rshared"
	}
	return "rprivate"
}

// podMounts are what every container gets: the pod's host files, shared memory
// and its own termination message.
func (m *Machine) podMounts(c *corev1.Container, id string) ([]runtime.Mount, error) {
	dir, err := m.podFiles()
	if err != nil {
		return nil, err
	}
	shm := "/dev/shm"
	if !m.pod.Template.Spec.HostIPC {
		if shm, err = m.volumes.Shm(m.pod.UID); err != nil {
			return nil, err
		}
	}
	message := filepath.Join(dir, id+messageSuffix)
	if err := errors.Join(forgetMessages(dir, id), writeFile(message, nil, 0o666)); err != nil {
		return nil, err
	}
	mounts := []runtime.Mount{bindMount(shm, "/dev/shm")}
	for _, name := range []string{"hosts", "hostname", "resolv.conf"} {
		mounts = append(mounts, bindMount(filepath.Join(dir, name), "/etc/"+name))
	}
	path := cmp.Or(c.TerminationMessagePath, corev1.TerminationMessagePathDefault)
	return append(mounts, bindMount(message, path)), nil
}

// messageSuffix follows the container's ID in the name of the file that holds
// its termination message.
const messageSuffix = ".termination"

// forgetMessages removes the termination messages of the container's earlier
// runs: they have been read, and the pod's directory holds little.
func forgetMessages(dir, id string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list termination messages: %w", err)
	}
	for _, e := range entries {
		name := e.Name()
		container, isMessage := strings.CutSuffix(name, messageSuffix)
		if !isMessage || container == id || !strings.HasPrefix(name, id[:strings.LastIndexByte(id, '_')+1]) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove termination message: %w", err)
		}
	}
	return nil
}

func bindMount(source, destination string) runtime.Mount {
	return runtime.Mount{Source: source, Destination: destination, Type: "bind", Options: []string{"rbind", "rw", "rprivate"}}
}

// podFiles writes hosts, hostname and resolv.conf.
func (m *Machine) podFiles() (string, error) {
	dir, err := m.volumes.Dir(m.pod.UID)
	if err != nil {
		return "", err
	}
	cluster := m.node.cluster().Domain
	hostNetwork := m.pod.Template.Spec.HostNetwork
	resolver, err := machineResolver(resolverFiles, hostNetwork, m.network.Gateway())
	if err != nil {
		return "", err
	}
	var hosts []byte
	if hostNetwork {
		if hosts, err = machineHosts(); err != nil {
			return "", err
		}
	}
	files := map[string][]byte{
		"hosts":       spec.Hosts(m.pod, m.memory.IP, cluster, hosts),
		"hostname":    []byte(m.hostname() + "\n"),
		"resolv.conf": spec.ResolverFor(m.pod, cluster, m.network.Gateway(), resolver).Bytes(),
	}
	for name, data := range files {
		if err := writeFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// machineHosts is the node's own hosts file.
func machineHosts() ([]byte, error) {
	hosts, err := os.ReadFile("/etc/hosts")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read the node's hosts: %w", err)
	}
	return hosts, nil
}

// writeFile writes in place: containers have the file mounted, and may have
// made it as large as they like.
func writeFile(path string, data []byte, mode os.FileMode) error {
	if info, err := os.Stat(path); err == nil && info.Size() == int64(len(data)) {
		if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
			return nil
		}
	}
	if err := os.WriteFile(path, data, mode); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}
