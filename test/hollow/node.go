package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/wire"
	"github.com/tallyman-dev/tallyman/proxy"
)

// node is one hollow agent: it speaks the protocol as an agent does, keeps its
// assignment, and says of every pod that it runs, the moment it is told to. It
// is a wire.Handler.
type node struct {
	name   string
	zone   string
	client *wire.Client

	mu sync.Mutex
	// guarded by mu
	cidr   netip.Prefix
	last   netip.Addr
	routes uint64
	pods   map[nodes.UID]*hollowPod
}

type hollowPod struct {
	*nodes.Pod
	addr    netip.Addr
	started time.Time
}

// newNode makes a hollow agent that run connects.
func newNode(name, zone string, dial func(context.Context) (net.Conn, error), c credentials.TransportCredentials, tables *wire.Tables) (*node, error) {
	n := &node{name: name, zone: zone, pods: map[nodes.UID]*hollowPod{}}
	var err error
	n.client, err = wire.NewClient(wire.ClientOptions{
		Dial: dial, Credentials: c, Node: name, Version: "hollow", Handler: n, Tables: tables, Log: slog.New(slog.DiscardHandler),
	})
	return n, err
}

// Hello implements wire.Handler.
func (n *node) Hello(context.Context) (nodes.Report, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := nodes.Report{Node: n.name, Complete: true, Info: n.describe(), Routes: n.routes}
	for _, p := range n.pods {
		r.Statuses = append(r.Statuses, p.status())
		r.Held = append(r.Held, p.Pod)
	}
	return r, nil
}

// describe is a machine of ordinary size. The caller holds mu.
func (n *node) describe() *nodes.Node {
	has := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("16"), corev1.ResourceMemory: resource.MustParse("64Gi"), corev1.ResourcePods: resource.MustParse("250"),
	}
	return &nodes.Node{
		Name: n.name, Labels: map[string]string{corev1.LabelTopologyZone: n.zone}, PodCIDR: n.cidr,
		Addrs:    []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, 1})},
		Capacity: has, Allocatable: has, OS: "linux", Arch: runtime.GOARCH, Runtime: "hollow", Version: "hollow", BootID: n.name,
	}
}

// Assign implements wire.Handler.
func (n *node) Assign(a *nodes.Assignment) {
	r := n.converge(a)
	if len(r.Statuses)+len(r.Gone) > 0 || r.Info != nil {
		n.client.Send(r)
	}
}

// converge makes the pods those of an assignment, and tells what changed.
func (n *node) converge(a *nodes.Assignment) nodes.Report {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := nodes.Report{Node: n.name}
	if n.cidr != a.PodCIDR {
		n.cidr = a.PodCIDR
		r.Info = n.describe()
	}
	wanted := make(map[nodes.UID]bool, len(a.Pods))
	for _, p := range a.Pods {
		if p.Stop != nil {
			continue
		}
		wanted[p.UID] = true
		if n.pods[p.UID] == nil {
			started := &hollowPod{Pod: p, addr: n.address(), started: time.Now().UTC()}
			n.pods[p.UID] = started
			r.Statuses = append(r.Statuses, started.status())
		}
	}
	for _, p := range a.Pods {
		if p.Stop != nil {
			delete(n.pods, p.UID)
			r.Gone = append(r.Gone, p.UID)
		}
	}
	for uid := range n.pods {
		if !wanted[uid] {
			delete(n.pods, uid)
			r.Gone = append(r.Gone, uid)
		}
	}
	return r
}

// address gives out the addresses of the range, round robin. The caller holds mu.
func (n *node) address() netip.Addr {
	if !n.cidr.IsValid() {
		return netip.Addr{}
	}
	if n.last = n.last.Next(); !n.cidr.Contains(n.last) || !n.cidr.Contains(n.last.Next()) {
		n.last = n.cidr.Addr().Next().Next()
	}
	return n.last
}

func (p *hollowPod) status() nodes.PodStatus {
	s := nodes.PodStatus{
		UID: p.UID, Phase: corev1.PodRunning, Started: p.started, Initialized: true, ContainersReady: true, Ready: true, ReadySince: p.started,
	}
	if p.addr.IsValid() {
		s.IP = p.addr.String()
	}
	for i := range p.Template.Spec.Containers {
		c := &p.Template.Spec.Containers[i]
		s.Containers = append(s.Containers, nodes.ContainerStatus{
			Name: c.Name, State: nodes.Running, ID: string(p.UID), Image: c.Image, ImageID: "sha256:hollow", Ready: true, Started: true, StartedAt: p.started,
		})
	}
	return s
}

// Route implements wire.Handler.
func (n *node) Route(t *proxy.Table) {
	n.mu.Lock()
	n.routes = t.Generation
	n.mu.Unlock()
	n.client.Send(nodes.Report{Node: n.name, Routes: t.Generation})
}

// Ledger implements wire.Handler. Nothing is kept: nobody comes back for it.
func (n *node) Ledger(bool, []nodes.Decision) {}

// Logs implements wire.Handler.
func (n *node) Logs(_ context.Context, q wire.LogQuery, _ io.Writer) error {
	return fmt.Errorf("pod %s: a hollow node has no logs", q.Pod)
}

// Lease implements wire.Handler: what does not run needs no fence.
func (n *node) Lease(_, _ time.Duration) {}
