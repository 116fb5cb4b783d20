package containerd

import (
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/pkg/apparmor"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

const (
	// defaultProfile is the name under which containerd's own profile is loaded.
	defaultProfile = "tallyman-default"
	// loadedProfiles is what the kernel has, a line each: its name, and its mode.
	loadedProfiles = "/sys/kernel/security/apparmor/profiles"
	// abstractions is where the machine keeps what profiles have in common.
	abstractions = "/etc/apparmor.d"
)

// profileText has places for what differs from machine to machine. It is no call
// of containerd's package because that one needs text/template, for which the
// linker would have to keep every method of every type.
//
//go:embed apparmor.profile
var profileText string

// setAppArmor confines the process. The default profile is loaded when it is
// first needed; on a machine without AppArmor it means nothing, as in
// Kubernetes, while a profile that is named must be there.
func setAppArmor(s *specs.Spec, name string) error {
	switch {
	case name == "":
	case apparmor.HostSupports():
		if name == runtime.AppArmorDefault {
			name = defaultProfile
			if err := loadProfile(name); err != nil {
				return fmt.Errorf("load AppArmor's default profile: %w", err)
			}
		}
		s.Process.ApparmorProfile = name
	case name != runtime.AppArmorDefault:
		return fmt.Errorf("AppArmor profile %q is asked for, and AppArmor is not enabled on this node", name)
	}
	return nil
}

// loadProfile gives the kernel the default profile unless it has it.
func loadProfile(name string) error {
	loaded, err := os.ReadFile(loadedProfiles)
	if err != nil || strings.Contains("\n"+string(loaded), "\n"+name+" ") {
		return err
	}
	parser := exec.Command("apparmor_parser", "-Kr")
	parser.Stdin = strings.NewReader(makeProfile(name))
	if out, err := parser.CombinedOutput(); err != nil {
		return fmt.Errorf("apparmor_parser: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// makeProfile fits containerd's profile to this machine.
func makeProfile(name string) string {
	head, base := "@{PROC}=/proc/", ""
	if present("tunables/global") {
		head = "#include <tunables/global>"
	}
	if present("abi/3.0") {
		head = "abi <abi/3.0>,\n" + head
	}
	if present("abstractions/base") {
		base = "  #include <abstractions/base>"
	}
	return strings.NewReplacer("@HEAD@", head, "@BASE@", base, "@NAME@", name, "@MANAGER@", ownProfile()).Replace(profileText)
}

func present(abstraction string) bool {
	_, err := os.Stat(filepath.Join(abstractions, abstraction))
	return err == nil
}

// ownProfile is what confines this process: its name without the mode.
func ownProfile() string {
	content, _ := os.ReadFile("/proc/self/attr/current") // not there: unconfined
	name, _, _ := strings.Cut(string(content), " ")
	if name = strings.TrimSpace(name); name == "" {
		return "unconfined"
	}
	return name
}
