package containerd

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/pkg/oci"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

// groupAnnotation makes containerd's shim serve all containers that bear the same value.
const groupAnnotation = "io.containerd.runc.v2.group"

// ociVersion is the newest that Debian 12's runc 1.1 knows; we use nothing newer.
const ociVersion = "1.0.2"

// defaultCaps are what Kubernetes' runtimes give a container that asks for nothing.
var defaultCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// maskedPaths and readonlyPaths are those of Kubernetes' procMount Default.
var (
	maskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
		"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// spec turns a container into what runc is told.
func (r *Runtime) spec(c runtime.Container, user specs.User, cgroup string) (*specs.Spec, error) {
	s := &specs.Spec{
		Version:     ociVersion,
		Root:        &specs.Root{Path: "rootfs", Readonly: c.Security.ReadOnlyRoot},
		Process:     process(c, user),
		Annotations: map[string]string{},
		Linux: &specs.Linux{
			CgroupsPath: cgroup,
			Namespaces:  r.namespaces(c),
			Sysctl:      c.Sysctls,
			Resources:   resources(c.Resources),
		},
	}
	if r.host.unified {
		// Out of memory, a container ends as a whole: one that goes on without some
		// of its processes is neither alive nor restarted.
		s.Linux.Resources.Unified = map[string]string{"memory.oom.group": "1"}
	}
	if c.Pod != "" {
		s.Annotations[groupAnnotation] = c.Pod
	}
	if c.UTS != "" {
		s.Hostname = c.Hostname
	}
	for _, size := range r.host.pages {
		limit := specs.LinuxHugepageLimit{Pagesize: pageName(size), Limit: uint64(c.HugePages[size])}
		s.Linux.Resources.HugepageLimits = append(s.Linux.Resources.HugepageLimits, limit)
	}
	score := max(c.OOMScoreAdj, r.host.minOOMScore)
	s.Process.OOMScoreAdj = &score
	setMounts(s, c)
	if err := setDevices(s, c); err != nil {
		return nil, err
	}
	if err := r.setSecurity(s, c); err != nil {
		return nil, err
	}
	return s, r.inject(s, c.CDI)
}

func process(c runtime.Container, user specs.User) *specs.Process {
	env := slices.Clone(c.Env)
	if !slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, "PATH=") }) {
		env = append(env, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	}
	if c.Terminal && !slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, "TERM=") }) {
		env = append(env, "TERM=xterm")
	}
	return &specs.Process{
		Terminal: c.Terminal, User: user, Args: c.Args, Env: env, Cwd: defaultTo(c.Dir, "/"),
		NoNewPrivileges: c.Security.NoNewPrivileges, SelinuxLabel: c.Security.SELinux,
	}
}

// namespaces leaves out those that are shared with the host.
func (r *Runtime) namespaces(c runtime.Container) []specs.LinuxNamespace {
	list := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	join := func(kind specs.LinuxNamespaceType, path string) {
		if path != "" {
			list = append(list, specs.LinuxNamespace{Type: kind, Path: path})
		}
	}
	join(specs.NetworkNamespace, c.Network)
	join(specs.IPCNamespace, c.IPC)
	join(specs.UTSNamespace, c.UTS)
	if !c.HostPID {
		list = append(list, specs.LinuxNamespace{Type: specs.PIDNamespace, Path: c.PID})
	}
	if r.host.unified && !c.Security.Privileged {
		list = append(list, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	return list
}

func resources(from runtime.Resources) *specs.LinuxResources {
	to := &specs.LinuxResources{}
	var cpu specs.LinuxCPU
	if from.CPUShares > 0 {
		cpu.Shares = &from.CPUShares
		to.CPU = &cpu
	}
	if from.CPUQuota > 0 {
		cpu.Quota = &from.CPUQuota
		to.CPU = &cpu
		if from.CPUPeriod > 0 {
			cpu.Period = &from.CPUPeriod
		}
	}
	if from.Memory > 0 {
		to.Memory = &specs.LinuxMemory{Limit: &from.Memory}
	}
	if from.PidsLimit > 0 {
		to.Pids = &specs.LinuxPids{Limit: &from.PidsLimit}
	}
	return to
}

// setMounts gives the system's mounts, then the caller's, outer before inner.
// A caller's mount takes the place of a system mount at the same path.
func setMounts(s *specs.Spec, c runtime.Container) {
	access := "ro"
	if c.Security.Privileged {
		access = "rw"
	}
	system := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}},
		{Destination: cgroupRoot, Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", access}},
	}
	own := map[string]bool{}
	for _, m := range c.Mounts {
		own[path.Clean(m.Destination)] = true
	}
	for _, m := range system {
		if !own[m.Destination] {
			s.Mounts = append(s.Mounts, m)
		}
	}
	for _, m := range c.Mounts {
		s.Mounts = append(s.Mounts, mountOf(m))
		propagateRoot(s, m)
	}
	slices.SortStableFunc(s.Mounts, func(a, b specs.Mount) int {
		return cmp.Compare(strings.Count(path.Clean(a.Destination), "/"), strings.Count(path.Clean(b.Destination), "/"))
	})
}

func mountOf(m runtime.Mount) specs.Mount {
	kind := defaultTo(m.Type, "bind")
	mount := specs.Mount{Destination: m.Destination, Type: kind, Source: defaultTo(m.Source, kind), Options: slices.Clone(m.Options)}
	if kind != "bind" {
		return mount
	}
	if !containsAny(mount.Options, "bind", "rbind") {
		mount.Options = append(mount.Options, "rbind")
	}
	if !containsAny(mount.Options, "private", "rprivate", "shared", "rshared", "slave", "rslave") {
		mount.Options = append(mount.Options, "rprivate")
	}
	return mount
}

// propagateRoot lets a mount with propagation see through the container's root.
func propagateRoot(s *specs.Spec, m runtime.Mount) {
	switch {
	case containsAny(m.Options, "shared", "rshared"):
		s.Linux.RootfsPropagation = "rshared"
	case containsAny(m.Options, "slave", "rslave") && s.Linux.RootfsPropagation == "":
		s.Linux.RootfsPropagation = "rslave"
	}
}

func containsAny(list []string, words ...string) bool {
	return slices.ContainsFunc(list, func(s string) bool { return slices.Contains(words, s) })
}

// setDevices denies all devices but the harmless ones and those asked for; a
// privileged container has every device of the machine.
func setDevices(s *specs.Spec, c runtime.Container) error {
	ctx := context.Background() // the options below neither wait nor use it
	if c.Security.Privileged {
		return oci.Compose(oci.WithHostDevices, oci.WithAllDevicesAllowed)(ctx, nil, nil, s)
	}
	s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	options := []oci.SpecOpts{oci.WithDefaultUnixDevices}
	for _, d := range c.Devices {
		options = append(options, oci.WithDevices(d.HostPath, d.ContainerPath, defaultTo(d.Permissions, "rwm")))
	}
	if err := oci.Compose(options...)(ctx, nil, nil, s); err != nil {
		return fmt.Errorf("devices: %w", err)
	}
	return nil
}

func (r *Runtime) setSecurity(s *specs.Spec, c runtime.Container) error {
	if err := setAppArmor(s, c.Security.AppArmor); err != nil {
		return err
	}
	caps := r.capabilities(c.Security)
	s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
	if c.Security.Privileged {
		return nil
	}
	if !c.Security.UnmaskedProc {
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = maskedPaths, readonlyPaths
	}
	s.Linux.MountLabel = ""
	switch c.Security.Seccomp {
	case "unconfined":
		return nil
	case "":
		s.Linux.Seccomp = seccomp.DefaultProfile(s)
		return nil
	}
	text, err := os.ReadFile(c.Security.Seccomp)
	if err != nil {
		return fmt.Errorf("seccomp profile: %w", err)
	}
	s.Linux.Seccomp = &specs.LinuxSeccomp{}
	if err := json.Unmarshal(text, s.Linux.Seccomp); err != nil {
		return fmt.Errorf("seccomp profile %s: %w", c.Security.Seccomp, err)
	}
	return nil
}

// capabilities applies additions and removals as Kubernetes' runtimes do:
// ALL first, single names after it.
func (r *Runtime) capabilities(s runtime.Security) []string {
	if s.Privileged {
		return r.host.caps
	}
	caps := slices.Clone(defaultCaps)
	if slices.ContainsFunc(s.AddCapabilities, isAll) {
		caps = slices.Clone(r.host.caps)
	}
	if slices.ContainsFunc(s.DropCapabilities, isAll) {
		caps = nil
	}
	for _, name := range s.AddCapabilities {
		if name = capName(name); !isAll(name) && !slices.Contains(caps, name) {
			caps = append(caps, name)
		}
	}
	for _, name := range s.DropCapabilities {
		name = capName(name)
		caps = slices.DeleteFunc(caps, func(have string) bool { return have == name })
	}
	return caps
}

func isAll(name string) bool { return strings.EqualFold(strings.TrimPrefix(name, "CAP_"), "ALL") }

func capName(name string) string {
	return "CAP_" + strings.TrimPrefix(strings.ToUpper(name), "CAP_")
}
