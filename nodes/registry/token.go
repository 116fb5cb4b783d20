package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/tallyman-dev/tallyman/nodes"
)

// token answers a node that asks for a token. It gets one only for a pod that
// its assignment holds, as Kubernetes' node authorisation has it.
func (r *Registry) token(_ context.Context, node string, q nodes.TokenRequest) (nodes.Token, error) {
	if r.o.Token == nil {
		return nodes.Token{}, errors.New("this server signs no tokens")
	}
	pod := r.assigned(node, q.Pod)
	if pod == nil {
		return nodes.Token{}, fmt.Errorf("pod %s is not bound to node %s", q.Pod, node)
	}
	return r.o.Token(pod, q)
}

// assigned finds a pod in a node's assignment.
func (r *Registry) assigned(node string, uid nodes.UID) *nodes.Pod {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.members[node]
	if m == nil || m.assignment == nil {
		return nil
	}
	pods := m.assignment.Pods
	i, found := slices.BinarySearchFunc(pods, uid, func(p *nodes.Pod, u nodes.UID) int {
		return strings.Compare(string(p.UID), string(u))
	})
	if !found {
		return nil
	}
	return pods[i]
}
