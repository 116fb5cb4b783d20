package storage

import (
	"maps"
	"strings"

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
	fill := strings.NewReplacer(words...)
	var out map[string]string
	for _, which := range nodes.DriverSecrets() {
		name, namespace := nodes.SecretParameters(which)
		for _, key := range []string{name, namespace} {
			if written, found := parameters[key]; found {
				if out == nil {
					out = maps.Clone(parameters)
				}
				out[key] = fill.Replace(written)
			}
		}
	}
	if out == nil {
		return parameters
	}
	return out
}
