package planner

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner/place"
)

const (
	// restartAnnotation, set to "false" on a workload or its template, keeps
	// changed configuration from rolling the pods.
	restartAnnotation = "tallyman.dev/restart-on-config-change"
	costAnnotation    = corev1.PodDeletionCost
	// unknownContent is that of pods adopted from a node without a record: it
	// equals any, and is learned at the first comparison.
	unknownContent = "?"
)

// wanted is the pod template that an object in Git asks for.
type wanted struct {
	podTemplate
	// content is the digest of what the pods read besides files; steady is set
	// when its change rolls nothing.
	content string
	steady  bool
	// handler is that of the pods' RuntimeClass.
	handler string
}

// wantedOf reads the template of a workload; ok is false for other kinds.
func (s *State) wantedOf(o *desired.Object) (wanted, bool) {
	k, ok := kinds[schemaKind{o.Key.Group, o.Key.Kind}]
	if !ok {
		return wanted{}, false
	}
	t, ok := k.template(o)
	if !ok {
		return wanted{}, false
	}
	w := wanted{podTemplate: t, content: s.content(o.Key.Namespace, t.spec), handler: s.handler(t.spec)}
	w.spec = s.asPods(t.spec)
	w.steady = t.steady || t.own[restartAnnotation] == "false" || t.annotations[restartAnnotation] == "false"
	return w, true
}

// handler is that of the RuntimeClass that pods of a spec name; empty when they
// name none.
func (s *State) handler(spec *corev1.PodSpec) string {
	name := runtimeClass(spec)
	if name == "" || s.snapshot == nil {
		return ""
	}
	o := s.snapshot.Get(desired.Key{Group: nodev1.GroupName, Kind: kindRuntimeClass, Name: name})
	if o == nil {
		return ""
	}
	class, _ := o.Value.(*nodev1.RuntimeClass)
	return class.Handler
}

// runtimeClass is the RuntimeClass that a spec names, empty for none.
func runtimeClass(spec *corev1.PodSpec) string {
	if spec.RuntimeClassName == nil {
		return ""
	}
	return *spec.RuntimeClassName
}

// matches compares a stored template with what is wanted today; a hash only
// names a template and decides nothing.
func (s *State) matches(g *group, have *set, w *wanted) bool {
	if have.content != w.content && !w.steady && have.content != unknownContent {
		return false
	}
	if have.template.RuntimeHandler != w.handler && !w.podTemplate.steady {
		return false
	}
	labels := have.template.Labels
	for k, v := range g.kind().stamp(g.key, have.hash) {
		if _, inGit := w.labels[k]; !inGit && labels[k] == v {
			labels = maps.Clone(labels)
			delete(labels, k)
		}
	}
	spec, annotations := desired.AsWritten(&have.template.Spec, have.template.Annotations)
	wantedSpec, wantedAnnotations := desired.AsWritten(w.spec, w.annotations)
	if !maps.Equal(labels, w.labels) || !maps.Equal(annotations, wantedAnnotations) {
		return false
	}
	if equality.Semantic.DeepEqual(spec, wantedSpec) {
		return true
	}
	if s.config.Default == nil {
		return false
	}
	// The template may have been stored before a default existed, or a default
	// have followed from what was filled in.
	today, wantedToday := spec.DeepCopy(), wantedSpec.DeepCopy()
	s.config.Default(today)
	s.config.Default(wantedToday)
	return equality.Semantic.DeepEqual(today, wantedToday)
}

// asPods is a template's specification as its pods have it: Kubernetes defaults
// some fields of pods, but not of templates.
func (s *State) asPods(spec *corev1.PodSpec) *corev1.PodSpec {
	if s.config.Default == nil || !defaultsPods(spec) {
		return spec
	}
	spec = spec.DeepCopy()
	s.config.Default(spec)
	return spec
}

// defaultsPods reports whether there may be such fields: what is limited and
// requests nothing, and ports in the host's network.
func defaultsPods(spec *corev1.PodSpec) bool {
	if spec.HostNetwork || spec.Resources != nil {
		return true
	}
	return slices.ContainsFunc(slices.Concat(spec.InitContainers, spec.Containers), func(c corev1.Container) bool { return len(c.Resources.Limits) > 0 })
}

// newSet names and keeps a template that no set of the group has yet.
func (st *step) newSet(g *group, w *wanted) *set {
	spec, err := json.Marshal(w.spec)
	if err != nil {
		panic("planner: encode pod spec: " + err.Error())
	}
	meta := string(mustJSON([]map[string]string{w.labels, w.annotations}))
	salt := w.handler
	hash := spell(digest(nil, meta, string(spec), w.content, salt), 10)
	for g.set(hash) != nil {
		salt += "+"
		hash = spell(digest(nil, meta, string(spec), w.content, salt), 10)
	}
	labels := w.labels
	if stamp := g.kind().stamp(g.key, hash); len(stamp) > 0 {
		labels = map[string]string{}
		maps.Copy(labels, w.labels)
		maps.Copy(labels, stamp)
	}
	t := &nodes.Template{Hash: hash, Labels: labels, Annotations: w.annotations, Spec: *w.spec, RuntimeHandler: w.handler}
	s := &set{
		hash: hash, template: t, request: place.Compile(profileOf(g.key), g.key.Namespace, t), refs: references(g.key.Namespace, w.spec),
		content: w.content, since: st.now, revision: 1,
	}
	if len(g.sets) > 0 {
		s.revision = g.sets[len(g.sets)-1].revision + 1
	}
	st.addSet(g, s)
	st.recordTemplate(g, s)
	st.recordSet(g, s)
	return s
}

// references lists the ConfigMaps and Secrets that pods of a spec read in any
// way, and the drivers of their inline volumes, sorted.
func references(namespace string, spec *corev1.PodSpec) []desired.Key {
	found := map[desired.Key]bool{}
	for i := range spec.Volumes {
		if inline := spec.Volumes[i].CSI; inline != nil {
			found[nodes.DriverKey(inline.Driver)] = true
		}
	}
	visitReferences(spec, func(kind, name string, _ []string, _ bool) {
		found[desired.Key{Kind: kind, Namespace: namespace, Name: name}] = true
	})
	return slices.SortedFunc(maps.Keys(found), desired.Key.Compare)
}

// visitReferences calls see for each use of a ConfigMap or Secret: fields
// are the keys used, nil for all of them; baked tells that pods keep what they
// were made with, so that a change needs new pods.
func visitReferences(spec *corev1.PodSpec, see func(kind, name string, fields []string, baked bool)) {
	subPaths := map[string]bool{}
	for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			visitContainer(&list[i], see)
			for _, m := range list[i].VolumeMounts {
				if m.SubPath != "" || m.SubPathExpr != "" {
					subPaths[m.Name] = true
				}
			}
		}
	}
	for i := range spec.Volumes {
		visitVolume(&spec.Volumes[i], subPaths[spec.Volumes[i].Name], see)
	}
	for _, s := range spec.ImagePullSecrets {
		see(kindSecret, s.Name, nil, false)
	}
}

func visitContainer(c *corev1.Container, see func(kind, name string, fields []string, baked bool)) {
	for _, e := range c.EnvFrom {
		if e.ConfigMapRef != nil {
			see(kindConfigMap, e.ConfigMapRef.Name, nil, true)
		}
		if e.SecretRef != nil {
			see(kindSecret, e.SecretRef.Name, nil, true)
		}
	}
	for _, e := range c.Env {
		if e.ValueFrom == nil {
			continue
		}
		if r := e.ValueFrom.ConfigMapKeyRef; r != nil {
			see(kindConfigMap, r.Name, []string{r.Key}, true)
		}
		if r := e.ValueFrom.SecretKeyRef; r != nil {
			see(kindSecret, r.Name, []string{r.Key}, true)
		}
	}
}

func visitVolume(v *corev1.Volume, baked bool, see func(kind, name string, fields []string, baked bool)) {
	if v.ConfigMap != nil {
		see(kindConfigMap, v.ConfigMap.Name, itemKeys(v.ConfigMap.Items), baked)
	}
	if v.Secret != nil {
		see(kindSecret, v.Secret.SecretName, itemKeys(v.Secret.Items), baked)
	}
	if v.CSI != nil && v.CSI.NodePublishSecretRef != nil {
		see(kindSecret, v.CSI.NodePublishSecretRef.Name, nil, false)
	}
	if v.Projected == nil {
		return
	}
	for _, s := range v.Projected.Sources {
		if s.ConfigMap != nil {
			see(kindConfigMap, s.ConfigMap.Name, itemKeys(s.ConfigMap.Items), baked)
		}
		if s.Secret != nil {
			see(kindSecret, s.Secret.Name, itemKeys(s.Secret.Items), baked)
		}
	}
}

func itemKeys(items []corev1.KeyToPath) []string {
	var names []string
	for _, i := range items {
		names = append(names, i.Key)
	}
	return names
}

// content digests what pods of a spec read as environment or through a
// subPath, keyed so that it tells nothing about a Secret; empty when they read
// nothing so.
func (s *State) content(namespace string, spec *corev1.PodSpec) string {
	uses := map[string]bool{}
	visitReferences(spec, func(kind, name string, fields []string, baked bool) {
		if !baked {
			return
		}
		c, ok := s.configs.Get(desired.Key{Kind: kind, Namespace: namespace, Name: name})
		if !ok {
			uses[kind+"/"+name+" is missing"] = true
			return
		}
		if fields == nil {
			fields = slices.Sorted(maps.Keys(c.Data))
			uses[kind+"/"+name+" has "+strings.Join(fields, ",")] = true
		}
		for _, f := range fields {
			v, ok := c.Data[f]
			if !ok {
				uses[kind+"/"+name+"/"+f+" is missing"] = true
				continue
			}
			uses[kind+"/"+name+"/"+f+"="+string(v)] = true
		}
	})
	if len(uses) == 0 {
		return ""
	}
	return hex.EncodeToString(digest(s.config.SecretKey, slices.Sorted(maps.Keys(uses))...)[:10])
}

// reads reports whether pods of a spec keep the content of one config from
// the time they were made.
func reads(spec *corev1.PodSpec, k desired.Key) bool {
	found := false
	visitReferences(spec, func(kind, name string, _ []string, baked bool) {
		found = found || baked && kind == k.Kind && name == k.Name
	})
	return found
}

// configOf is the content of a ConfigMap, Secret or CSIDriver as agents get it.
func (s *State) configOf(o *desired.Object) *nodes.Config {
	c := &nodes.Config{Key: o.Key, Version: hex.EncodeToString(digest(s.config.SecretKey, "config", o.Fingerprint)[:10]), Data: map[string][]byte{}}
	switch v := o.Value.(type) {
	case *corev1.ConfigMap:
		for k, text := range v.Data {
			c.Data[k] = []byte(text)
		}
		for k, b := range v.BinaryData {
			c.Data[k] = bytes.Clone(b)
		}
		c.Binary = slices.Sorted(maps.Keys(v.BinaryData))
	case *corev1.Secret:
		for k, b := range v.Data {
			c.Data[k] = bytes.Clone(b)
		}
		for k, text := range v.StringData {
			c.Data[k] = []byte(text)
		}
		c.Type = string(v.Type)
	case *storagev1.CSIDriver:
		c.Data[nodes.DriverSpec] = mustJSON(v.Spec)
	}
	return c
}
