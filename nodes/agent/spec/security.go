package spec

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

// Identity is who a container's process runs as.
type Identity struct {
	// User as runtime.Container wants it.
	User   string
	Group  *int64
	Groups []int64
	// Strict leaves out the groups that the image gives the user.
	Strict bool
}

// Who merges the security contexts of pod and container with the image's user.
// It refuses root where the manifest asks for runAsNonRoot.
func Who(pod *corev1.PodSpec, c *corev1.Container, imageUser string) (Identity, error) {
	var id Identity
	uid, nonRoot := (*int64)(nil), (*bool)(nil)
	if s := pod.SecurityContext; s != nil {
		uid, id.Group, nonRoot = s.RunAsUser, s.RunAsGroup, s.RunAsNonRoot
		id.Groups = append(id.Groups, s.SupplementalGroups...)
		id.Strict = s.SupplementalGroupsPolicy != nil && *s.SupplementalGroupsPolicy == corev1.SupplementalGroupsPolicyStrict
		if s.FSGroup != nil {
			id.Groups = append(id.Groups, *s.FSGroup)
		}
	}
	if s := c.SecurityContext; s != nil {
		uid, id.Group, nonRoot = or(s.RunAsUser, uid), or(s.RunAsGroup, id.Group), or(s.RunAsNonRoot, nonRoot)
	}
	id.User = imageUser
	if uid != nil {
		id.User = strconv.FormatInt(*uid, 10)
	}
	if nonRoot != nil && *nonRoot {
		return id, refuseRoot(id.User, uid != nil)
	}
	return id, nil
}

func refuseRoot(user string, fromManifest bool) error {
	name, _, _ := strings.Cut(user, ":")
	uid, err := strconv.ParseInt(name, 10, 64)
	switch {
	case name == "" || (err == nil && uid == 0 && !fromManifest):
		return errors.New("container has runAsNonRoot and image will run as root")
	case err == nil && uid == 0:
		return errors.New("container's runAsUser breaks non-root policy")
	case err != nil:
		return fmt.Errorf("container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root", name)
	}
	return nil
}

func or[T any](first, second *T) *T {
	if first != nil {
		return first
	}
	return second
}

// Security merges the security contexts of pod and container. profiles is the
// folder that localhost seccomp profiles are named in.
func Security(pod *corev1.PodSpec, c *corev1.Container, profiles string) runtime.Security {
	var out runtime.Security
	var seccomp *corev1.SeccompProfile
	var appArmor *corev1.AppArmorProfile
	var selinux *corev1.SELinuxOptions
	if s := pod.SecurityContext; s != nil {
		seccomp, appArmor, selinux = s.SeccompProfile, s.AppArmorProfile, s.SELinuxOptions
	}
	if s := c.SecurityContext; s != nil {
		seccomp, appArmor, selinux = or(s.SeccompProfile, seccomp), or(s.AppArmorProfile, appArmor), or(s.SELinuxOptions, selinux)
		out.Privileged = s.Privileged != nil && *s.Privileged
		out.NoNewPrivileges = s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation
		out.ReadOnlyRoot = s.ReadOnlyRootFilesystem != nil && *s.ReadOnlyRootFilesystem
		out.UnmaskedProc = s.ProcMount != nil && *s.ProcMount == corev1.UnmaskedProcMount
		if s.Capabilities != nil {
			out.AddCapabilities = capabilities(s.Capabilities.Add)
			out.DropCapabilities = capabilities(s.Capabilities.Drop)
		}
	}
	out.Seccomp = seccompProfile(seccomp, profiles)
	out.AppArmor = appArmorProfile(appArmor)
	out.SELinux = selinuxLabel(selinux)
	return out
}

// appArmorProfile names what the runtime is to apply. Where nothing is said,
// nothing is: the machine's own confinement stays.
func appArmorProfile(p *corev1.AppArmorProfile) string {
	switch {
	case p == nil:
		return ""
	case p.Type == corev1.AppArmorProfileTypeRuntimeDefault:
		return runtime.AppArmorDefault
	case p.Type == corev1.AppArmorProfileTypeLocalhost && p.LocalhostProfile != nil:
		return *p.LocalhostProfile
	}
	return ""
}

func capabilities(list []corev1.Capability) []string {
	var names []string
	for _, c := range list {
		names = append(names, strings.TrimPrefix(strings.ToUpper(string(c)), "CAP_"))
	}
	return names
}

func seccompProfile(p *corev1.SeccompProfile, profiles string) string {
	switch {
	case p == nil:
		return ""
	case p.Type == corev1.SeccompProfileTypeUnconfined:
		return "unconfined"
	case p.Type == corev1.SeccompProfileTypeLocalhost && p.LocalhostProfile != nil:
		return filepath.Join(profiles, filepath.Clean("/"+*p.LocalhostProfile))
	}
	return ""
}

func selinuxLabel(o *corev1.SELinuxOptions) string {
	if o == nil {
		return ""
	}
	def := func(s, d string) string {
		if s == "" {
			return d
		}
		return s
	}
	return strings.Join([]string{
		def(o.User, "system_u"), def(o.Role, "system_r"), def(o.Type, "container_t"), def(o.Level, "s0"),
	}, ":")
}
