package manifest

import (
	"fmt"

	"k8s.io/component-helpers/node/util/sysctl"

	"github.com/tallyman-dev/tallyman/desired"
)

// checkSysctls refuses sysctls that belong to no namespace of a pod. Kubernetes
// leaves that to the node, where the pod would fail; its validation knows those
// of namespaces that a pod shares with the node.
func (w *world) checkSysctls() {
	for _, e := range w.objects {
		t, ok := templateOf(e.object)
		if !ok || t.spec.SecurityContext == nil {
			continue
		}
		for i, s := range t.spec.SecurityContext.Sysctls {
			if space, _, _ := sysctl.GetNamespace(s.Name); space != sysctl.UnknownNamespace || s.Name == "" {
				continue
			}
			w.found.report(e, desired.Error, "invalid", fmt.Sprintf("%s.securityContext.sysctls[%d].name", t.path, i),
				fmt.Sprintf("sysctl %q belongs to no namespace of a pod: setting it would change the whole node", s.Name),
				"set it on the machine itself; pods may set net.*, fs.mqueue.*, kernel.sem, kernel.shm* and kernel.msg*")
		}
	}
}
