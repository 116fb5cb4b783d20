package containerd

import (
	"context"
	"fmt"
)

// Root is the directory where the snapshotter keeps what images unpack to: its
// file system is the one that images fill.
func (r *Runtime) Root(ctx context.Context) (string, error) {
	answer, err := r.client.IntrospectionService().Plugins(ctx, "id=="+r.snapshotter)
	if err != nil {
		return "", fmt.Errorf("ask containerd for its snapshotter: %w", err)
	}
	for _, plugin := range answer.GetPlugins() {
		if root := plugin.GetExports()["root"]; root != "" {
			return root, nil
		}
	}
	return "", fmt.Errorf("containerd does not say where the snapshotter %s keeps its data", r.snapshotter)
}
