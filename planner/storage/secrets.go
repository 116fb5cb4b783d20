package storage

import (
	"maps"
	"strings"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// Resolve fills in, for one claim and its volume, the names of Secrets in the
// parameters of a class: ${pv.name}, ${pvc.namespace}, ${pvc.name} and
// ${pvc.annotations['…']}, as Kubernetes' provisioner sidecar knows them.
func Resolve(parameters map[string]string, c *Claim, annotations map[string]string, volume string) map[string]string {
	words := []string{"${pv.name}", volume, "${pvc.namespace}", c.Key.Namespace, "${pvc.name}", c.Key.Name}
	for name, value := range annotations {
		words = append(words, "${pvc.annotations['"+name+"']}", value)
	}
	return fill(parameters, strings.NewReplacer(words...), nodes.DriverSecrets()...)
}

// ResolveSnapshot does the same for a snapshot and its content:
// ${volumesnapshotcontent.name}, ${volumesnapshot.namespace} and
// ${volumesnapshot.name}, as Kubernetes' snapshotter sidecar knows them.
func ResolveSnapshot(parameters map[string]string, snapshot desired.Key, content string) map[string]string {
	words := strings.NewReplacer("${volumesnapshotcontent.name}", content, "${volumesnapshot.namespace}", snapshot.Namespace, "${volumesnapshot.name}", snapshot.Name)
	return fill(parameters, words, nodes.SnapshotterSecret)
}

// fill leaves parameters that name no Secret as they are.
func fill(parameters map[string]string, words *strings.Replacer, secrets ...string) map[string]string {
	var out map[string]string
	for _, which := range secrets {
		name, namespace := nodes.SecretParameters(which)
		for _, key := range []string{name, namespace} {
			if written, found := parameters[key]; found {
				if out == nil {
					out = maps.Clone(parameters)
				}
				out[key] = words.Replace(written)
			}
		}
	}
	if out == nil {
		return parameters
	}
	return out
}
