package manifest

import (
	"bufio"
	"fmt"
	"io"
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// WriteDifferences prints what somebody who comes from Kubernetes will miss:
// the kinds, and the fields of pods, that are refused or not enforced.
func WriteDifferences(w io.Writer) error {
	b := bufio.NewWriter(w)
	b.WriteString("| kind or field | class | why |\n|---|---|---|\n")
	for _, status := range []Status{NotEnforced, Unsupported} {
		for _, k := range kindRules() {
			if k.status == status {
				fmt.Fprintf(b, "| %s (%s) | %s | %s |\n", k.kind, k.apiVersion(), k.status, k.reason)
			}
		}
	}
	t := newFieldTable()
	pod := reflect.TypeFor[corev1.PodSpec]()
	for _, r := range t.rows(pod, "", map[reflect.Type]bool{pod: true}, true) {
		if strings.HasPrefix(r.path, "initContainers") {
			continue // as for containers
		}
		if r.rule.status == NotEnforced || r.rule.status == Unsupported {
			fmt.Fprintf(b, "| `%s` of a pod | %s | %s%s |\n", r.path, r.rule.status, r.rule.reason, exceptions(r.rule))
		}
	}
	return b.Flush()
}
