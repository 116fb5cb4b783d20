package manifest

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
)

// checkMachines tells of labels of Nodes that are not Git's to give: what a
// machine is called and made of, its agent says.
func (w *world) checkMachines() {
	for _, e := range w.objects {
		n, ok := e.object.Value.(*corev1.Node)
		if !ok {
			continue
		}
		w.checkMachineLabel(e, n, corev1.LabelHostname, n.Name)
		w.checkMachineLabel(e, n, corev1.LabelOSStable, "linux")
		w.checkMachineLabel(e, n, "beta.kubernetes.io/os", "linux")
		w.checkMachineLabel(e, n, corev1.LabelArchStable, "")
		w.checkMachineLabel(e, n, "beta.kubernetes.io/arch", "")
	}
}

// checkMachineLabel knows the label's only value, if it is not empty.
func (w *world) checkMachineLabel(e *entry, n *corev1.Node, label, is string) {
	field := "metadata.labels[" + label + "]"
	switch value, written := n.Labels[label]; {
	case !written || value == is:
	case is == "":
		w.found.report(e, desired.Note, "no-effect", field, "the node's agent says which architecture it has", "remove it")
	default:
		w.found.report(e, desired.Warning, "no-effect", field,
			fmt.Sprintf("it stays %q, whatever is written: other values would be untrue", is), "remove it, or use a label of your own")
	}
}
