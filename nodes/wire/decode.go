package wire

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/wire/pb"
	"github.com/tallyman-dev/tallyman/proxy"
)

func decodeTime(nanoseconds int64) time.Time {
	if nanoseconds == 0 {
		return time.Time{}
	}
	return time.Unix(0, nanoseconds).UTC()
}

func decodeAddrs(in [][]byte) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, b := range in {
		a, err := decodeAddr(b)
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}

func decodeAddr(b []byte) (netip.Addr, error) {
	if len(b) == 0 {
		return netip.Addr{}, nil
	}
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		return a, fmt.Errorf("address of %d bytes", len(b))
	}
	return a, nil
}

func decodePrefix(s string) (netip.Prefix, error) {
	if s == "" {
		return netip.Prefix{}, nil
	}
	return netip.ParsePrefix(s)
}

func decodePort(n uint32) (uint16, error) {
	if n > 65535 {
		return 0, fmt.Errorf("port %d is above 65535", n)
	}
	return uint16(n), nil
}

func decodeUID(u string) nodes.UID { return nodes.UID(u) }

func decodeKey(k *pb.Key) desired.Key {
	return desired.Key{Group: k.GetGroup(), Kind: k.GetKind(), Namespace: k.GetNamespace(), Name: k.GetName()}
}

func decodeNode(n *pb.Node) (*nodes.Node, error) {
	if n == nil {
		return nil, nil
	}
	out := &nodes.Node{
		Name: n.GetName(), Labels: n.GetLabels(), OS: n.GetOs(), Arch: n.GetArch(), Kernel: n.GetKernel(),
		Runtime: n.GetRuntime(), Version: n.GetVersion(), BootID: n.GetBootId(), Drivers: n.GetDrivers(), WireGuard: n.GetWireguard(), Problems: n.GetProblems(),
		DriverNodes: each(n.GetDriverNodes(), func(d *pb.DriverNode) nodes.DriverNode {
			return nodes.DriverNode{Name: d.GetName(), ID: d.GetId(), Controller: d.GetController(), MaxVolumes: d.GetMaxVolumes()}
		}),
		Taints: each(n.GetTaints(), func(t *pb.Taint) corev1.Taint {
			return corev1.Taint{Key: t.GetKey(), Value: t.GetValue(), Effect: corev1.TaintEffect(t.GetEffect())}
		}),
	}
	var err error
	if out.Addrs, err = decodeAddrs(n.GetAddrs()); err != nil {
		return nil, fmt.Errorf("node %s: %w", out.Name, err)
	}
	if out.PodCIDR, err = decodePrefix(n.GetPodCidr()); err != nil {
		return nil, fmt.Errorf("node %s: pod range: %w", out.Name, err)
	}
	if out.Capacity, err = decodeResources(n.GetCapacity()); err != nil {
		return nil, fmt.Errorf("node %s: capacity: %w", out.Name, err)
	}
	if out.Allocatable, err = decodeResources(n.GetAllocatable()); err != nil {
		return nil, fmt.Errorf("node %s: allocatable: %w", out.Name, err)
	}
	return out, nil
}

// decodeImages keeps no more than a node may tell.
func decodeImages(i *pb.Images) *nodes.Images {
	if i == nil {
		return nil
	}
	return nodes.NewImages(each(i.GetList(), func(i *pb.Image) nodes.Image { return nodes.Image{Names: i.GetNames(), Size: i.GetSize()} }))
}

func decodeResources(in map[string]string) (corev1.ResourceList, error) {
	if len(in) == 0 {
		return nil, nil
	}
	out := make(corev1.ResourceList, len(in))
	for name, text := range in {
		quantity, err := desired.ParseQuantity(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		out[corev1.ResourceName(name)] = quantity
	}
	return out, nil
}

func decodeNetwork(n *pb.Network) (desired.Network, error) {
	out := desired.Network{Domain: n.GetDomain(), Overlay: n.GetOverlay()}
	var err error
	if out.Services, err = decodePrefix(n.GetServices()); err != nil {
		return out, fmt.Errorf("service range: %w", err)
	}
	if out.Pods, err = decodePrefix(n.GetPods()); err != nil {
		return out, fmt.Errorf("pod range: %w", err)
	}
	if out.NodePortLow, err = decodePort(n.GetNodePortLow()); err != nil {
		return out, err
	}
	out.NodePortHigh, err = decodePort(n.GetNodePortHigh())
	return out, err
}

func decodeTemplate(t *pb.Template) (*nodes.Template, error) {
	out := &nodes.Template{Hash: t.GetHash(), Labels: t.GetLabels(), Annotations: t.GetAnnotations(), RuntimeHandler: t.GetRuntimeHandler()}
	if err := podShape().check(t.GetSpec()); err != nil {
		return nil, fmt.Errorf("template %s: %w", out.Hash, err)
	}
	if err := out.Spec.Unmarshal(t.GetSpec()); err != nil {
		return nil, fmt.Errorf("template %s: %w", out.Hash, err)
	}
	return out, nil
}

// decodePod finds the pod's template in templates.
func decodePod(p *pb.Pod, templates map[uint64]*nodes.Template) (*nodes.Pod, error) {
	out := &nodes.Pod{
		UID: nodes.UID(p.GetUid()), Namespace: p.GetNamespace(), Name: p.GetName(),
		Owner: decodeKey(p.GetOwner()), Workload: decodeKey(p.GetWorkload()),
		Incarnation: p.GetIncarnation(), Ordinal: int(p.GetOrdinal()), TemplateHash: p.GetTemplateHash(),
		Node: p.GetNode(), Revision: p.GetRevision(), Created: decodeTime(p.GetCreated()),
		Hostname: p.GetHostname(), Subdomain: p.GetSubdomain(), Labels: p.GetLabels(), Annotations: p.GetAnnotations(), Claims: p.GetClaims(), Seal: p.GetSeal(),
	}
	if stop := p.GetStop(); stop != nil {
		out.Stop = &nodes.Stop{Grace: time.Duration(stop.GetGrace()), Reason: stop.GetReason()}
	}
	if ref := p.GetTemplate(); ref != 0 {
		if out.Template = templates[ref]; out.Template == nil {
			return nil, fmt.Errorf("pod %s: template %d never came", out.UID, ref)
		}
	}
	return out, nil
}

func decodeConfig(c *pb.Config) *nodes.Config {
	return &nodes.Config{Key: decodeKey(c.GetKey()), Version: c.GetVersion(), Data: c.GetData(), Type: c.GetType(), Binary: c.GetBinary()}
}

// decodeVolume returns nil for nil.
func decodeVolume(v *pb.Volume) (*nodes.Volume, error) {
	if v == nil {
		return nil, nil
	}
	out := &nodes.Volume{
		Name: v.GetName(), UID: v.GetUid(), Claim: decodeKey(v.GetClaim()), Provisioner: v.GetProvisioner(), Class: v.GetClass(),
		Parameters: v.GetParameters(), Node: v.GetNode(), Made: v.GetMade(), Released: decodeTime(v.GetReleased()), Delete: v.GetDelete(),
		Snapshot: v.GetSnapshot(), Seal: v.GetSeal(), Maker: v.GetMaker(), Size: v.GetSize(), Reach: decodeReach(v.GetReach()),
		Detach: each(v.GetDetach(), func(d *pb.Detachment) nodes.Detachment {
			return nodes.Detachment{Node: d.GetNode(), ID: d.GetId(), By: d.GetBy()}
		}),
	}
	if v.GetFromName() != "" {
		out.From = &nodes.Origin{Name: v.GetFromName(), UID: v.GetFromUid(), Volume: v.GetFromVolume(), Snapshot: v.GetFromSnapshot()}
	}
	if err := volumeShape().check(v.GetSpec()); err != nil {
		return nil, fmt.Errorf("volume %s: %w", out.Name, err)
	}
	if err := out.Spec.Unmarshal(v.GetSpec()); err != nil {
		return nil, fmt.Errorf("volume %s: %w", out.Name, err)
	}
	return out, nil
}

func decodeReach(r *pb.Reach) *nodes.Reach {
	if r == nil {
		return nil
	}
	return &nodes.Reach{Topology: each(r.GetTopology(), (*pb.Place).GetLabels)}
}

func decodeVolumeStatus(s *pb.VolumeStatus) (nodes.VolumeStatus, error) {
	out := nodes.VolumeStatus{
		Name: s.GetName(), UID: s.GetUid(), Phase: nodes.VolumePhase(s.GetPhase()), Capacity: s.GetCapacity(),
		Unenforced: s.GetUnenforced(), Reason: s.GetReason(), Message: s.GetMessage(),
		Reach: decodeReach(s.GetReach()), Use: nodes.VolumeUse(s.GetUse()),
		Detach: each(s.GetDetach(), func(d *pb.DetachStatus) nodes.DetachStatus {
			return nodes.DetachStatus{Node: d.GetNode(), Done: d.GetDone()}
		}),
	}
	var err error
	if out.Held, err = decodeVolume(s.GetHeld()); err != nil {
		return out, err
	}
	if len(s.GetSource()) > 0 {
		out.Source = &corev1.CSIPersistentVolumeSource{}
		if err := out.Source.Unmarshal(s.GetSource()); err != nil {
			return out, fmt.Errorf("source of volume %s: %w", out.Name, err)
		}
	}
	return out, nil
}

func decodeUsage(u *pb.Usage) nodes.Usage {
	return nodes.Usage{
		Pod: nodes.UID(u.GetPod()), At: decodeTime(u.GetAt()), Window: time.Duration(u.GetWindow()),
		Containers: each(u.GetContainers(), func(c *pb.ContainerUsage) nodes.ContainerUsage {
			return nodes.ContainerUsage{Name: c.GetName(), CPU: c.GetCpu(), Memory: c.GetMemory()}
		}),
	}
}

func decodeStatus(s *pb.PodStatus) nodes.PodStatus {
	return nodes.PodStatus{
		UID: nodes.UID(s.GetUid()), Phase: nodes.Phase(s.GetPhase()), IP: s.GetIp(), Started: decodeTime(s.GetStarted()),
		Initialized: s.GetInitialized(), ContainersReady: s.GetContainersReady(),
		Ready: s.GetReady(), ReadySince: decodeTime(s.GetReadySince()),
		Reason: s.GetReason(), Message: s.GetMessage(),
		Init: each(s.GetInit(), decodeContainer), Containers: each(s.GetContainers(), decodeContainer),
	}
}

func decodeContainer(c *pb.ContainerStatus) nodes.ContainerStatus {
	out := nodes.ContainerStatus{
		Name: c.GetName(), State: nodes.ContainerState(c.GetState()), ID: c.GetId(), Image: c.GetImage(), ImageID: c.GetImageId(),
		Ready: c.GetReady(), Started: c.GetStarted(), Restarts: int(c.GetRestarts()),
		Reason: c.GetReason(), Message: c.GetMessage(),
		StartedAt: decodeTime(c.GetStartedAt()), FinishedAt: decodeTime(c.GetFinishedAt()),
		ExitCode: c.GetExitCode(), Signal: c.GetSignal(),
	}
	if l := c.GetLast(); l != nil {
		out.Last = &nodes.Termination{
			Reason: l.GetReason(), Message: l.GetMessage(), ExitCode: l.GetExitCode(), Signal: l.GetSignal(),
			StartedAt: decodeTime(l.GetStartedAt()), FinishedAt: decodeTime(l.GetFinishedAt()),
		}
	}
	return out
}

func decodeEvent(e *pb.Event) nodes.Event {
	return nodes.Event{
		Object: decodeKey(e.GetObject()), Warning: e.GetWarning(), Reason: e.GetReason(), Message: e.GetMessage(),
		Source: e.GetSource(), First: decodeTime(e.GetFirst()), Last: decodeTime(e.GetLast()), Count: int(e.GetCount()),
	}
}

func decodeDecision(d *pb.Decision) nodes.Decision {
	out := nodes.Decision{Kind: d.GetKind(), Key: d.GetKey()}
	if !d.GetForget() {
		out.Value = json.RawMessage(d.GetValue())
	}
	return out
}

func decodeService(s *pb.Service) (*proxy.Service, error) {
	out := &proxy.Service{
		Namespace: s.GetNamespace(), Name: s.GetName(), Headless: s.GetHeadless(), ExternalName: s.GetExternalName(),
		Affinity: time.Duration(s.GetAffinity()), InternalLocal: s.GetInternalLocal(), ExternalLocal: s.GetExternalLocal(),
		Prefer: proxy.Preference(s.GetPrefer()),
	}
	var err error
	if out.HealthCheckPort, err = decodePort(s.GetHealthCheckPort()); err != nil {
		return nil, fmt.Errorf("service %s/%s: %w", out.Namespace, out.Name, err)
	}
	if out.ClusterIPs, err = decodeAddrs(s.GetClusterIps()); err != nil {
		return nil, fmt.Errorf("service %s/%s: %w", out.Namespace, out.Name, err)
	}
	if out.ExternalIPs, err = decodeAddrs(s.GetExternalIps()); err != nil {
		return nil, fmt.Errorf("service %s/%s: %w", out.Namespace, out.Name, err)
	}
	for _, p := range s.GetPorts() {
		port, err := decodeServicePort(p)
		if err != nil {
			return nil, fmt.Errorf("service %s/%s: %w", out.Namespace, out.Name, err)
		}
		out.Ports = append(out.Ports, port)
	}
	return out, nil
}

func decodePeer(p *pb.Peer) (proxy.Node, error) {
	out := proxy.Node{Name: p.GetName(), Zone: p.GetZone(), WireGuard: p.GetWireguard()}
	var err error
	if out.Addr, err = decodeAddr(p.GetAddr()); err != nil {
		return out, fmt.Errorf("node %s: %w", out.Name, err)
	}
	if out.PodCIDR, err = decodePrefix(p.GetPodCidr()); err != nil {
		return out, fmt.Errorf("node %s: pod range: %w", out.Name, err)
	}
	return out, nil
}

func decodeServicePort(p *pb.Port) (proxy.Port, error) {
	out := proxy.Port{Name: p.GetName(), Protocol: proxy.Protocol(p.GetProtocol())}
	var err error
	if out.Port, err = decodePort(p.GetPort()); err != nil {
		return out, err
	}
	if out.NodePort, err = decodePort(p.GetNodePort()); err != nil {
		return out, err
	}
	for _, e := range p.GetEndpoints() {
		endpoint := proxy.Endpoint{Node: e.GetNode(), Hostname: e.GetHostname(), Pod: e.GetPod()}
		if endpoint.Addr, err = decodeAddr(e.GetAddr()); err != nil {
			return out, err
		}
		if endpoint.Port, err = decodePort(e.GetPort()); err != nil {
			return out, err
		}
		out.Endpoints = append(out.Endpoints, endpoint)
	}
	return out, nil
}

func decodeQuery(q *pb.OpenLog) LogQuery {
	return LogQuery{
		Pod: nodes.UID(q.GetPod()), Container: q.GetContainer(), Follow: q.GetFollow(), Previous: q.GetPrevious(),
		Tail: int(q.GetTail()), Since: decodeTime(q.GetSince()), Timestamps: q.GetTimestamps(),
	}
}
