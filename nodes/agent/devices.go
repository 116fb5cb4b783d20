package agent

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/agent/spec"
	"github.com/tallyman-dev/tallyman/nodes/device"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

// equip adds the devices that a container requests. What the manifest says of
// the environment wins over what comes with a device.
func (m *Machine) equip(ctx context.Context, name string, c *runtime.Container) error {
	s := &m.pod.Template.Spec
	container := spec.Find(s, name)
	if container == nil {
		return nil
	}
	wants := spec.Extended(container)
	if len(wants) == 0 {
		return nil
	}
	if m.devices == nil {
		return &containerError{"CreateContainerConfigError", fmt.Errorf("the node has no devices, the container requests %v", wants)}
	}
	grant, err := m.devices.Equip(ctx, device.Claim{Pod: m.pod.UID, Container: name, Shares: apart(s, name), Wants: wants})
	if err != nil {
		return &containerError{"CreateContainerConfigError", err}
	}
	c.Devices = append(c.Devices, grant.Devices...)
	c.Mounts = append(c.Mounts, grant.Mounts...)
	c.CDI = append(c.CDI, grant.CDI...)
	c.Env = append(grant.Env[:len(grant.Env):len(grant.Env)], c.Env...)
	return nil
}

// apart names the containers of a pod that never run beside one of them: its
// init containers run one after the other, and before all others.
func apart(s *corev1.PodSpec, name string) []string {
	var inits, others []string
	isInit := false
	for i := range s.InitContainers {
		c := &s.InitContainers[i]
		switch {
		case c.Name == name && spec.Sidecar(c):
			return nil
		case c.Name == name:
			isInit = true
		case !spec.Sidecar(c):
			inits = append(inits, c.Name)
		}
	}
	for i := range s.Containers {
		others = append(others, s.Containers[i].Name)
	}
	if isInit {
		return append(inits, others...)
	}
	return inits
}

// release gives the pod's devices back.
func release(p *ports, uid nodes.UID) error {
	if p.devices == nil {
		return nil
	}
	if err := p.devices.Release(uid); err != nil {
		return fmt.Errorf("give back devices of pod %s: %w", uid, err)
	}
	return nil
}

// counted are the devices as capacity and as what pods may request.
func counted(counts map[string]device.Count) (capacity, allocatable corev1.ResourceList) {
	capacity, allocatable = corev1.ResourceList{}, corev1.ResourceList{}
	for name, c := range counts {
		capacity[corev1.ResourceName(name)] = *resource.NewQuantity(c.Total, resource.DecimalSI)
		allocatable[corev1.ResourceName(name)] = *resource.NewQuantity(c.Healthy, resource.DecimalSI)
	}
	return capacity, allocatable
}

// DevicesChanged tells that Options.Devices has others than before.
func (a *Agent) DevicesChanged() { a.tell() }
