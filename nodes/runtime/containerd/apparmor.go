package containerd

import (
	"fmt"

	profile "github.com/containerd/containerd/v2/contrib/apparmor"
	"github.com/containerd/containerd/v2/pkg/apparmor"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

// defaultProfile is the name under which containerd's own profile is loaded.
const defaultProfile = "tallyman-default"

// setAppArmor confines the process. The default profile is loaded when it is
// first needed; on a machine without AppArmor it means nothing, as in
// Kubernetes, while a profile that is named must be there.
func setAppArmor(s *specs.Spec, name string) error {
	switch {
	case name == "":
	case apparmor.HostSupports():
		if name == runtime.AppArmorDefault {
			name = defaultProfile
			if err := profile.LoadDefaultProfile(name); err != nil {
				return fmt.Errorf("load AppArmor's default profile: %w", err)
			}
		}
		s.Process.ApparmorProfile = name
	case name != runtime.AppArmorDefault:
		return fmt.Errorf("AppArmor profile %q is asked for, and AppArmor is not enabled on this node", name)
	}
	return nil
}
