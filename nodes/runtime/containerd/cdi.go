package containerd

import (
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
)

// inject adds what the node's CDI specs say of devices: files, mounts, variables
// and hooks. The specs are read anew, for their owners replace them at any time.
func (r *Runtime) inject(s *specs.Spec, devices []string) error {
	if len(devices) == 0 {
		return nil
	}
	cache, err := cdi.NewCache(cdi.WithAutoRefresh(false), cdi.WithSpecDirs(r.cdiDirs...))
	if err != nil {
		return fmt.Errorf("read the CDI specs in %v: %w", r.cdiDirs, err)
	}
	if unknown, err := cache.InjectDevices(s, devices...); err != nil {
		return fmt.Errorf("CDI devices %v: %w; unknown to the specs in %v: %v", devices, err, r.cdiDirs, unknown)
	}
	return nil
}
