package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// token answers a node that asks for a token. It gets one only for a pod that
// its assignment holds, as Kubernetes' node authorisation has it, and only for an
// audience and a time that the pod's volumes or their drivers ask for
// (ServiceAccountNodeAudienceRestriction).
func (r *Registry) token(_ context.Context, node string, q nodes.TokenRequest) (nodes.Token, error) {
	if r.o.Token == nil {
		return nodes.Token{}, errors.New("this server signs no tokens")
	}
	pod, asked := r.assigned(node, q.Pod)
	if pod == nil {
		return nodes.Token{}, fmt.Errorf("pod %s is not bound to node %s", q.Pod, node)
	}
	if err := allow(asked, q); err != nil {
		return nodes.Token{}, fmt.Errorf("pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return r.o.Token(pod, q)
}

// allow refuses what nobody asks for in Git.
func allow(asked []nodes.TokenRequest, q nodes.TokenRequest) error {
	named := false
	for _, a := range asked {
		if a.Audience != q.Audience {
			continue
		}
		named = true
		if q.Expiry <= a.Expiry {
			return nil
		}
	}
	if named {
		return fmt.Errorf("no token for audience %q that holds for %s: neither a serviceAccountToken volume of the pod nor a CSIDriver of its volumes asks for one as long", q.Audience, q.Expiry)
	}
	return fmt.Errorf("no token for audience %q: neither a serviceAccountToken volume of the pod nor a CSIDriver of its volumes asks for one", q.Audience)
}

// assigned finds a pod in a node's assignment, and the tokens that it asks for.
func (r *Registry) assigned(node string, uid nodes.UID) (*nodes.Pod, []nodes.TokenRequest) {
	r.mu.Lock()
	m := r.members[node]
	if m == nil || m.assignment == nil {
		r.mu.Unlock()
		return nil, nil
	}
	a := m.assignment
	r.mu.Unlock()
	i, found := slices.BinarySearchFunc(a.Pods, uid, func(p *nodes.Pod, u nodes.UID) int {
		return strings.Compare(string(p.UID), string(u))
	})
	if !found {
		return nil, nil
	}
	p := a.Pods[i]
	return p, p.TokenRequests(func(v *corev1.Volume) *nodes.Config { return driverConfig(a, p, v) })
}

// driverConfig is the CSIDriver object behind a volume of a pod; nil for none.
func driverConfig(a *nodes.Assignment, p *nodes.Pod, v *corev1.Volume) *nodes.Config {
	driver := ""
	if v.CSI != nil {
		driver = v.CSI.Driver
	} else {
		claim := desired.Key{Kind: "PersistentVolumeClaim", Namespace: p.Namespace, Name: p.Claim(v)}
		if i := slices.IndexFunc(a.Volumes, func(v *nodes.Volume) bool { return v.Claim == claim && !v.Delete }); i >= 0 {
			driver = a.Volumes[i].Driver()
		}
	}
	i := slices.IndexFunc(a.Configs, func(c *nodes.Config) bool { return c.Key == nodes.DriverKey(driver) })
	if driver == "" || i < 0 {
		return nil
	}
	return a.Configs[i]
}
