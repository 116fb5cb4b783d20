package manifest

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
)

// checkReferences looks for what pods need: ConfigMaps, Secrets, their keys,
// claims, and ports by name.
func (w *world) checkReferences() {
	for _, e := range w.objects {
		t, ok := templateOf(e.object)
		if !ok {
			continue
		}
		c := referenceCheck{world: w, entry: e}
		c.volumes(t)
		for i := range t.spec.InitContainers {
			c.container(&t.spec.InitContainers[i], fmt.Sprintf("%s.initContainers[%d]", t.path, i))
		}
		for i := range t.spec.Containers {
			c.container(&t.spec.Containers[i], fmt.Sprintf("%s.containers[%d]", t.path, i))
		}
		for i, s := range t.spec.ImagePullSecrets {
			c.need(want{kind: "Secret", name: s.Name, severity: desired.Warning, field: func() string { return fmt.Sprintf("%s.imagePullSecrets[%d].name", t.path, i) }})
		}
	}
}

// referenceCheck looks at the pods of one object.
type referenceCheck struct {
	*world
	entry *entry
}

// want is a ConfigMap, Secret or claim that a pod needs, with some of its keys.
type want struct {
	kind, name string
	keys       []string
	// text means that keys of binaryData do not count.
	text     bool
	optional *bool
	severity desired.Severity
	// field is asked only when something is missing.
	field func() string
}

func (c referenceCheck) volumes(t podTemplate) {
	for i := range t.spec.Volumes {
		v := &t.spec.Volumes[i]
		at := func(rest string) func() string {
			return func() string { return fmt.Sprintf("%s.volumes[%d].%s", t.path, i, rest) }
		}
		switch {
		case v.ConfigMap != nil:
			c.need(want{kind: "ConfigMap", name: v.ConfigMap.Name, keys: itemKeys(v.ConfigMap.Items), optional: v.ConfigMap.Optional, field: at("configMap.name")})
		case v.Secret != nil:
			c.need(want{kind: "Secret", name: v.Secret.SecretName, keys: itemKeys(v.Secret.Items), optional: v.Secret.Optional, field: at("secret.secretName")})
		case v.Projected != nil:
			c.projected(v.Projected, at)
		case v.PersistentVolumeClaim != nil:
			if name := v.PersistentVolumeClaim.ClaimName; !replacesVolume(c.entry.object, v.Name) && !c.makesClaim(c.entry.key.Namespace, name) {
				c.need(want{kind: "PersistentVolumeClaim", name: name, field: at("persistentVolumeClaim.claimName")})
			}
		case v.CSI != nil && v.CSI.NodePublishSecretRef != nil:
			c.need(want{kind: "Secret", name: v.CSI.NodePublishSecretRef.Name, field: at("csi.nodePublishSecretRef.name")})
		}
	}
}

func (c referenceCheck) projected(p *corev1.ProjectedVolumeSource, at func(string) func() string) {
	for j, s := range p.Sources {
		if s.ConfigMap != nil {
			c.need(want{kind: "ConfigMap", name: s.ConfigMap.Name, keys: itemKeys(s.ConfigMap.Items), optional: s.ConfigMap.Optional, field: at(fmt.Sprintf("projected.sources[%d].configMap.name", j))})
		}
		if s.Secret != nil {
			c.need(want{kind: "Secret", name: s.Secret.Name, keys: itemKeys(s.Secret.Items), optional: s.Secret.Optional, field: at(fmt.Sprintf("projected.sources[%d].secret.name", j))})
		}
	}
}

func itemKeys(items []corev1.KeyToPath) []string {
	var keys []string
	for _, i := range items {
		keys = append(keys, i.Key)
	}
	return keys
}

func (c referenceCheck) container(k *corev1.Container, path string) {
	at := func(format string, i int, rest string) func() string {
		return func() string { return path + fmt.Sprintf(format, i) + rest }
	}
	for i := range k.EnvFrom {
		if r := k.EnvFrom[i].ConfigMapRef; r != nil {
			c.need(want{kind: "ConfigMap", name: r.Name, optional: r.Optional, field: at(".envFrom[%d]", i, ".configMapRef.name")})
		}
		if r := k.EnvFrom[i].SecretRef; r != nil {
			c.need(want{kind: "Secret", name: r.Name, optional: r.Optional, field: at(".envFrom[%d]", i, ".secretRef.name")})
		}
	}
	for i := range k.Env {
		from := k.Env[i].ValueFrom
		if from == nil {
			continue
		}
		if r := from.ConfigMapKeyRef; r != nil {
			c.need(want{kind: "ConfigMap", name: r.Name, keys: []string{r.Key}, text: true, optional: r.Optional, field: at(".env[%d]", i, ".valueFrom.configMapKeyRef")})
		}
		if r := from.SecretKeyRef; r != nil {
			c.need(want{kind: "Secret", name: r.Name, keys: []string{r.Key}, optional: r.Optional, field: at(".env[%d]", i, ".valueFrom.secretKeyRef")})
		}
	}
	c.ports(k, path)
}

// need reports what is missing. An object that is written but could not be
// decoded is not missing: its own problem is reported.
func (c referenceCheck) need(n want) {
	if n.name == "" || n.optional != nil && *n.optional {
		return
	}
	if n.severity == "" {
		n.severity = desired.Error
	}
	key := desired.Key{Kind: n.kind, Namespace: c.entry.key.Namespace, Name: n.name}
	e, ok := c.known[key]
	code := "missing-" + strings.ToLower(n.kind)
	if !ok {
		hint := fmt.Sprintf("add the %s, or mark the reference optional", n.kind)
		if n.kind == "PersistentVolumeClaim" {
			hint = "add the claim"
		}
		if n.severity == desired.Warning {
			hint = "images are pulled without it"
		}
		c.found.report(c.entry, n.severity, code, n.field(), fmt.Sprintf("there is no %s %q in namespace %s", n.kind, n.name, key.Namespace), hint)
		return
	}
	if e.object == nil {
		return
	}
	keys := keysOf(e.object, n.text)
	for _, k := range n.keys {
		switch {
		case k == "" || keys[k]:
		case n.text && keysOf(e.object, false)[k]:
			c.found.report(c.entry, n.severity, "missing-key", n.field(), fmt.Sprintf("key %q of %s %q is binaryData, which cannot be a variable", k, n.kind, n.name),
				"move it to data, or mount it as a file")
		default:
			c.found.report(c.entry, n.severity, "missing-key", n.field(), fmt.Sprintf("%s %q has no key %q", n.kind, n.name, k), suggest(k, keys))
		}
	}
}

// keysOf are the keys of a ConfigMap or Secret, without those of binaryData for
// text.
func keysOf(o *desired.Object, text bool) map[string]bool {
	keys := map[string]bool{}
	switch v := o.Value.(type) {
	case *corev1.ConfigMap:
		for k := range v.Data {
			keys[k] = true
		}
		for k := range v.BinaryData {
			keys[k] = !text
		}
	case *corev1.Secret:
		for k := range v.Data {
			keys[k] = true
		}
	}
	return keys
}

// ports checks that the ports which probes and hooks name exist.
func (c referenceCheck) ports(k *corev1.Container, path string) {
	refs := portRefs(k)
	if len(refs) == 0 {
		return
	}
	named := map[string]bool{}
	for _, p := range k.Ports {
		if p.Name != "" {
			named[p.Name] = true
		}
	}
	for _, r := range refs {
		if !named[r.name] {
			c.found.report(c.entry, desired.Error, "missing-port", path+"."+r.field,
				fmt.Sprintf("container %q has no port named %q", k.Name, r.name), suggest(r.name, named))
		}
	}
}
