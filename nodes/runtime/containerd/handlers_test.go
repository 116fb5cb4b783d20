package containerd

import "testing"

func TestShimOfHandler(t *testing.T) {
	for handler, want := range map[string][2]string{
		"":          {shimName, "containerd-shim-runc-v2"},
		"runc":      {shimName, "containerd-shim-runc-v2"},
		"kata":      {"io.containerd.kata.v2", "containerd-shim-kata-v2"},
		"kata-qemu": {"io.containerd.kata-qemu.v2", "containerd-shim-kata-qemu-v2"},
		"runsc":     {"io.containerd.runsc.v1", "containerd-shim-runsc-v1"},
	} {
		if name, program := shimOf(handler); name != want[0] || program != want[1] {
			t.Errorf("handler %q: %s, %s, want %q", handler, name, program, want)
		}
	}
}
