package wire

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/wire/pb"
	"github.com/tallyman-dev/tallyman/proxy"
)

// The functions of this file turn the vocabulary into messages; decode.go has
// their inverses. Empty and nil slices and maps are the same on the wire.

func each[A, B any](in []A, f func(A) B) []B {
	if len(in) == 0 {
		return nil
	}
	out := make([]B, len(in))
	for i, v := range in {
		out[i] = f(v)
	}
	return out
}

// text makes s fit for protobuf: what programs in containers say need not be
// UTF-8, and one wrong byte must not end a session.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func texts(all []string) []string {
	var out []string
	for _, s := range all {
		out = append(out, text(s))
	}
	return out
}

func encodeTime(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func encodeAddr(a netip.Addr) []byte { return a.AsSlice() }

func encodePrefix(p netip.Prefix) string {
	if !p.IsValid() {
		return ""
	}
	return p.String()
}

func encodeUID(u nodes.UID) string { return string(u) }

func encodeKey(k desired.Key) *pb.Key {
	return &pb.Key{Group: k.Group, Kind: k.Kind, Namespace: k.Namespace, Name: k.Name}
}

func encodeNode(n *nodes.Node) *pb.Node {
	if n == nil {
		return nil
	}
	return &pb.Node{
		Name: n.Name, Labels: n.Labels, Addrs: each(n.Addrs, encodeAddr), PodCidr: encodePrefix(n.PodCIDR),
		Capacity: encodeResources(n.Capacity), Allocatable: encodeResources(n.Allocatable),
		Os: n.OS, Arch: n.Arch, Kernel: n.Kernel, Runtime: n.Runtime, Version: n.Version, BootId: n.BootID, Drivers: n.Drivers, Wireguard: n.WireGuard, Problems: texts(n.Problems),
		DriverNodes: each(n.DriverNodes, func(d nodes.DriverNode) *pb.DriverNode {
			return &pb.DriverNode{Name: d.Name, Id: d.ID, Controller: d.Controller, MaxVolumes: d.MaxVolumes}
		}),
		Taints: each(n.Taints, func(t corev1.Taint) *pb.Taint {
			return &pb.Taint{Key: t.Key, Value: t.Value, Effect: string(t.Effect)}
		}),
	}
}

func encodeImages(i *nodes.Images) *pb.Images {
	if i == nil {
		return nil
	}
	return &pb.Images{List: each(i.List, func(i nodes.Image) *pb.Image { return &pb.Image{Names: texts(i.Names), Size: i.Size} })}
}

func encodeResources(list corev1.ResourceList) map[string]string {
	if len(list) == 0 {
		return nil
	}
	out := make(map[string]string, len(list))
	for name, quantity := range list {
		out[string(name)] = quantity.String()
	}
	return out
}

func encodeNetwork(n desired.Network) *pb.Network {
	return &pb.Network{
		Services: encodePrefix(n.Services), Pods: encodePrefix(n.Pods), Domain: n.Domain,
		NodePortLow: uint32(n.NodePortLow), NodePortHigh: uint32(n.NodePortHigh), Overlay: n.Overlay,
	}
}

// encodePod refers to the pod's template by ref.
func encodePod(p *nodes.Pod, ref uint64) *pb.Pod {
	out := &pb.Pod{
		Uid: string(p.UID), Namespace: p.Namespace, Name: p.Name,
		Owner: encodeKey(p.Owner), Workload: encodeKey(p.Workload),
		Incarnation: p.Incarnation, Ordinal: int64(p.Ordinal),
		Template: ref, TemplateHash: p.TemplateHash,
		Node: p.Node, Revision: p.Revision, Created: encodeTime(p.Created),
		Hostname: p.Hostname, Subdomain: p.Subdomain, Labels: p.Labels, Annotations: p.Annotations, Claims: p.Claims, Seal: p.Seal,
	}
	if p.Stop != nil {
		out.Stop = &pb.Stop{Grace: int64(p.Stop.Grace), Reason: text(p.Stop.Reason)}
	}
	return out
}

func encodeConfig(c *nodes.Config) *pb.Config {
	return &pb.Config{Key: encodeKey(c.Key), Version: c.Version, Data: c.Data, Type: c.Type, Binary: c.Binary}
}

// encodeVolume returns nil for nil.
func encodeVolume(v *nodes.Volume) (*pb.Volume, error) {
	if v == nil {
		return nil, nil
	}
	spec, err := v.Spec.Marshal()
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", v.Name, err)
	}
	out := &pb.Volume{
		Name: v.Name, Uid: v.UID, Claim: encodeKey(v.Claim), Provisioner: v.Provisioner, Class: v.Class,
		Parameters: v.Parameters, Node: v.Node, Spec: spec, Made: v.Made, Released: encodeTime(v.Released), Delete: v.Delete,
		Snapshot: v.Snapshot, Seal: v.Seal, Maker: v.Maker, Size: v.Size, Reach: encodeReach(v.Reach),
		Detach: each(v.Detach, func(d nodes.Detachment) *pb.Detachment {
			return &pb.Detachment{Node: d.Node, Id: d.ID, By: d.By}
		}),
	}
	if v.From != nil {
		out.FromName, out.FromUid, out.FromVolume, out.FromSnapshot = v.From.Name, v.From.UID, v.From.Volume, v.From.Snapshot
	}
	return out, nil
}

func encodeReach(r *nodes.Reach) *pb.Reach {
	if r == nil {
		return nil
	}
	return &pb.Reach{Topology: each(r.Topology, func(labels map[string]string) *pb.Place { return &pb.Place{Labels: labels} })}
}

func encodeVolumeStatus(s *nodes.VolumeStatus) (*pb.VolumeStatus, error) {
	held, err := encodeVolume(s.Held)
	if err != nil {
		return nil, err
	}
	out := &pb.VolumeStatus{
		Name: s.Name, Uid: s.UID, Phase: string(s.Phase), Capacity: s.Capacity, Unenforced: text(s.Unenforced),
		Reason: text(s.Reason), Message: text(s.Message), Held: held,
		Reach: encodeReach(s.Reach), Use: string(s.Use),
		Detach: each(s.Detach, func(d nodes.DetachStatus) *pb.DetachStatus {
			return &pb.DetachStatus{Node: d.Node, Done: d.Done}
		}),
	}
	if s.Source != nil {
		if out.Source, err = s.Source.Marshal(); err != nil {
			return nil, fmt.Errorf("volume %s: %w", s.Name, err)
		}
	}
	return out, nil
}

func encodeUsage(u nodes.Usage) *pb.Usage {
	return &pb.Usage{
		Pod: string(u.Pod), At: encodeTime(u.At), Window: int64(u.Window),
		Containers: each(u.Containers, func(c nodes.ContainerUsage) *pb.ContainerUsage {
			return &pb.ContainerUsage{Name: c.Name, Cpu: c.CPU, Memory: c.Memory}
		}),
	}
}

func encodeStatus(s nodes.PodStatus) *pb.PodStatus {
	return &pb.PodStatus{
		Uid: string(s.UID), Phase: string(s.Phase), Ip: s.IP, Started: encodeTime(s.Started),
		Initialized: s.Initialized, ContainersReady: s.ContainersReady,
		Ready: s.Ready, ReadySince: encodeTime(s.ReadySince),
		Reason: text(s.Reason), Message: text(s.Message),
		Init: each(s.Init, encodeContainer), Containers: each(s.Containers, encodeContainer),
	}
}

func encodeContainer(c nodes.ContainerStatus) *pb.ContainerStatus {
	out := &pb.ContainerStatus{
		Name: c.Name, State: string(c.State), Id: c.ID, Image: text(c.Image), ImageId: text(c.ImageID),
		Ready: c.Ready, Started: c.Started, Restarts: int64(c.Restarts),
		Reason: text(c.Reason), Message: text(c.Message),
		StartedAt: encodeTime(c.StartedAt), FinishedAt: encodeTime(c.FinishedAt),
		ExitCode: c.ExitCode, Signal: c.Signal,
	}
	if l := c.Last; l != nil {
		out.Last = &pb.Termination{
			Reason: text(l.Reason), Message: text(l.Message), ExitCode: l.ExitCode, Signal: l.Signal,
			StartedAt: encodeTime(l.StartedAt), FinishedAt: encodeTime(l.FinishedAt),
		}
	}
	return out
}

func encodeEvent(e nodes.Event) *pb.Event {
	return &pb.Event{
		Object: encodeKey(e.Object), Warning: e.Warning, Reason: text(e.Reason), Message: text(e.Message), Source: e.Source,
		First: encodeTime(e.First), Last: encodeTime(e.Last), Count: int64(e.Count),
	}
}

func encodeDecision(d nodes.Decision) *pb.Decision {
	return &pb.Decision{Kind: d.Kind, Key: d.Key, Value: d.Value, Forget: d.Value == nil}
}

func encodeService(s *proxy.Service) *pb.Service {
	return &pb.Service{
		Namespace: s.Namespace, Name: s.Name,
		ClusterIps: each(s.ClusterIPs, encodeAddr), Headless: s.Headless, ExternalName: s.ExternalName,
		ExternalIps: each(s.ExternalIPs, encodeAddr), Ports: each(s.Ports, encodePort),
		Affinity: int64(s.Affinity), InternalLocal: s.InternalLocal, ExternalLocal: s.ExternalLocal,
		Prefer: string(s.Prefer), HealthCheckPort: uint32(s.HealthCheckPort),
	}
}

func encodePeer(n proxy.Node) *pb.Peer {
	return &pb.Peer{Name: n.Name, Addr: encodeAddr(n.Addr), PodCidr: encodePrefix(n.PodCIDR), Zone: n.Zone, Wireguard: n.WireGuard}
}

func encodePort(p proxy.Port) *pb.Port {
	return &pb.Port{
		Name: p.Name, Protocol: string(p.Protocol), Port: uint32(p.Port), NodePort: uint32(p.NodePort),
		Endpoints: each(p.Endpoints, func(e proxy.Endpoint) *pb.Endpoint {
			return &pb.Endpoint{
				Addr: encodeAddr(e.Addr), Port: uint32(e.Port),
				Node: e.Node, Hostname: e.Hostname, Pod: e.Pod,
			}
		}),
	}
}

func encodeQuery(id string, q LogQuery) *pb.OpenLog {
	return &pb.OpenLog{
		Id: id, Pod: string(q.Pod), Container: q.Container, Follow: q.Follow, Previous: q.Previous,
		Tail: int64(q.Tail), Since: encodeTime(q.Since), Timestamps: q.Timestamps,
	}
}
