package planner

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// revokedAnnotation on a v1 Node shuts the machine of that name out, unless it is
// "false"; any other value may say why.
const revokedAnnotation = "tallyman.dev/revoked"

// Revoked are the names of the nodes that the revision in force shuts out, sorted.
func (s *State) Revoked() []string {
	if s.snapshot == nil {
		return nil
	}
	var names []string
	for _, o := range s.snapshot.Kind(kindNode) {
		n, ok := o.Value.(*corev1.Node)
		if !ok {
			continue
		}
		if isRevoked(n) {
			names = append(names, n.Name)
		}
	}
	slices.Sort(names)
	return names
}

func isRevoked(n *corev1.Node) bool {
	value, found := n.Annotations[revokedAnnotation]
	return found && value != "false"
}
