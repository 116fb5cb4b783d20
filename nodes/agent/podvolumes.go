package agent

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/agent/spec"
	"github.com/tallyman-dev/tallyman/nodes/csi"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
	"github.com/tallyman-dev/tallyman/nodes/volume"
)

func usesClaim(p *nodes.Pod, claim desired.Key) bool {
	if claim.Name == "" || p.Namespace != claim.Namespace {
		return false
	}
	volumes := p.Template.Spec.Volumes
	for i := range volumes {
		if p.Claim(&volumes[i]) == claim.Name {
			return true
		}
	}
	return false
}

// claim stages the volume behind a pod's claim. The error says what is waited for.
func (a *Agent) claim(ctx context.Context, v *corev1.Volume, wish csi.Wish) (volume.Volume, error) {
	p, name := wish.Pod, wish.Pod.Claim(v)
	a.mu.Lock()
	w := a.volumeOf(desired.Key{Kind: "PersistentVolumeClaim", Namespace: p.Namespace, Name: name})
	var bound *nodes.Volume
	var status nodes.VolumeStatus
	copied := false
	if w != nil {
		bound, status, copied = w.v, w.status, w.copies > 0
		if !copied {
			w.begins()
			w.stagedFor[p.UID] = true
		}
	}
	a.mu.Unlock()
	switch {
	case w == nil:
		return volume.Volume{}, fmt.Errorf("persistentvolumeclaim %q has no volume on this node yet", name)
	case copied:
		return volume.Volume{}, fmt.Errorf("volume %s of persistentvolumeclaim %q is being copied: it can be used as soon as that is done", bound.Name, name)
	case status.Phase != nodes.VolumeReady:
		return volume.Volume{}, fmt.Errorf("volume %s of persistentvolumeclaim %q is %s: %s", bound.Name, name,
			cmp.Or(status.Phase, nodes.VolumePending), cmp.Or(status.Message, "it is being made"))
	}
	made, err := a.o.Persistent.Stage(ctx, bound, wish)
	if err == nil && status.Reason != "" {
		w.poke() // what it waits for may be a pod that has it
	}
	return made, err
}

// driverOf is the CSI driver behind a volume of a pod; empty for none.
func (a *Agent) driverOf(p *nodes.Pod, v *corev1.Volume) string {
	if v.CSI != nil {
		return v.CSI.Driver
	}
	name := p.Claim(v)
	if name == "" {
		return ""
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	w := a.volumeOf(desired.Key{Kind: "PersistentVolumeClaim", Namespace: p.Namespace, Name: name})
	if w == nil {
		return ""
	}
	return w.v.Driver()
}

// slowVolumes reports whether mounting the pod's volumes may wait for something
// outside of this node's memory: it then goes on beside the steps.
func slowVolumes(p *nodes.Pod) bool {
	volumes := p.Template.Spec.Volumes
	return slices.ContainsFunc(volumes, func(v corev1.Volume) bool { return p.Claim(&v) != "" || v.NFS != nil || v.CSI != nil || v.Image != nil })
}

// volumeSource is what the pod's volumes are made from. It may be used beside
// the steps.
func (m *Machine) volumeSource() volume.Source {
	c, pod, tokens := m.context(), m.pod, maps.Clone(m.memory.Tokens)
	driverToken := func(s *corev1.ServiceAccountTokenProjection) (csi.Token, error) {
		r := pod.TokenRequest(s)
		value, err := projectedToken(tokens, r, m.now())
		return csi.Token{Value: value, Expires: tokens[tokenKey(r)].Expires}, err
	}
	return volume.Source{
		Config: m.node.config, Field: c.Field,
		Memory:   spec.MemoryBound(&pod.Template.Spec, m.node.allocatable),
		Resource: func(r *corev1.ResourceFieldSelector) (string, error) { return c.Resource(r, nil) },
		Token: func(s *corev1.ServiceAccountTokenProjection) (string, error) {
			return projectedToken(tokens, pod.TokenRequest(s), m.now())
		},
		DriverToken: driverToken,
		Image:       m.mountImage(),
		Claim: func(ctx context.Context, v *corev1.Volume) (volume.Volume, error) {
			readOnly := v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ReadOnly
			return m.node.claim(ctx, v, csi.Wish{Pod: pod, ReadOnly: readOnly, Token: driverToken})
		},
	}
}

// volumeDevices are the block volumes that a container asks for.
func (m *Machine) volumeDevices(c *corev1.Container) ([]runtime.Device, error) {
	var devices []runtime.Device
	for _, d := range c.VolumeDevices {
		made, found := m.mounts[d.Name]
		if !found {
			return nil, fmt.Errorf("volume device %s: the pod has no volume %q", d.DevicePath, d.Name)
		}
		if made.Device == "" {
			return nil, fmt.Errorf("volume device %s: volume %q has volumeMode Filesystem: list it under volumeMounts", d.DevicePath, d.Name)
		}
		may := "rwm"
		if made.ReadOnly {
			may = "r"
		}
		devices = append(devices, runtime.Device{HostPath: made.Device, ContainerPath: d.DevicePath, Permissions: may})
	}
	return devices, nil
}
