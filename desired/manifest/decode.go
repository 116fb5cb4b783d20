package manifest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/capabilities"

	"github.com/tallyman-dev/tallyman/desired"
)

// rules are the tables, made ready for look-up. Immutable.
type rules struct {
	// kinds by "apiVersion Kind", byName by kind alone.
	kinds  map[string]kindRule
	byName map[string][]kindRule
	// versions are the further ones of those kinds, by "apiVersion Kind".
	versions map[string]version
	fields   *fieldTable
}

func newRules() *rules {
	// Kubernetes' validation asks this switch of its own whether containers may
	// be privileged, which here every pusher may; the first call counts.
	capabilities.Setup(true, 0)
	r := &rules{kinds: map[string]kindRule{}, byName: map[string][]kindRule{}, versions: map[string]version{}, fields: newFieldTable()}
	for _, k := range kindRules() {
		r.kinds[k.apiVersion()+" "+k.kind] = k
		r.byName[k.kind] = append(r.byName[k.kind], k)
	}
	for _, v := range versions() {
		r.versions[v.apiVersion()+" "+v.kind] = v
	}
	return r
}

// decode reads one object of a known kind and version.
func (r *rules) decode(src *source, data []byte, apiVersion, kind, namespace, name string) ([]*entry, []desired.Problem) {
	rule, code, message, hint := r.lookUp(apiVersion, kind)
	if mayBeCustom(apiVersion, code) {
		undefined := src.problem(desired.Error, code, "kind", message, hint)
		return r.custom(src, data, desired.Key{Group: schema.FromAPIVersionAndKind(apiVersion, kind).Group, Kind: kind, Namespace: namespace, Name: name}, undefined)
	}
	if code != "" {
		e := &entry{src: src, key: desired.Key{Kind: kind, Namespace: namespace, Name: name}}
		return []*entry{e}, []desired.Problem{src.problem(desired.Error, code, "kind", message, hint)}
	}
	e := &entry{src: src, key: rule.key(namespace, name)}
	if rule.status == Unsupported {
		return []*entry{e}, append(r.examine(src, data, apiVersion, rule), src.problem(desired.Error, "unsupported", "kind",
			fmt.Sprintf("%s is not supported: %s", kind, rule.reason), ""))
	}
	object, problems := r.typed(src, data, apiVersion, rule)
	if object == nil {
		e.broken = true
		return []*entry{e}, problems
	}
	problems = append(problems, r.complete(src, rule, object)...)
	problems = append(problems, r.remarks(src, rule, object)...)
	settle(object)
	accessor := object.(metav1.Object)
	e.key = rule.key(accessor.GetNamespace(), accessor.GetName())
	e.object = &desired.Object{Key: e.key, From: src.place(), Value: object, Fingerprint: fingerprint(object)}
	return []*entry{e}, problems
}

// complete does with a decoded object what an API server does: namespace,
// defaults, validation.
func (r *rules) complete(src *source, rule kindRule, object runtime.Object) []desired.Problem {
	problems := adopt(src, object.(metav1.Object), rule)
	legacyscheme.Scheme.Default(object)
	prepare(object)
	object.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{Group: rule.group, Version: rule.version, Kind: rule.kind})
	return append(problems, r.validate(src, rule, object)...)
}

// examine says what is wrong with an object of a kind that does not work here:
// it is not part of the snapshot, but its author wants to know all the same.
func (r *rules) examine(src *source, data []byte, apiVersion string, rule kindRule) []desired.Problem {
	if rule.make == nil {
		return nil
	}
	object, problems := r.typed(src, data, apiVersion, rule)
	if object == nil {
		return problems
	}
	return append(problems, r.complete(src, rule, object)...)
}

// adopt puts an object into its namespace.
func adopt(src *source, object metav1.Object, rule kindRule) []desired.Problem {
	switch namespace := object.GetNamespace(); {
	case rule.clusterScoped && namespace != "":
		object.SetNamespace("")
		return []desired.Problem{src.problem(desired.Note, "no-effect", "metadata.namespace", "has no effect here: the kind has no namespaces", "")}
	case !rule.clusterScoped && namespace == "":
		object.SetNamespace(metav1.NamespaceDefault)
	}
	return nil
}

// prepare does what an API server does between defaulting and validation.
func prepare(object runtime.Object) {
	switch o := object.(type) {
	case *corev1.Service:
		if o.Spec.ClusterIP != "" && len(o.Spec.ClusterIPs) == 0 {
			o.Spec.ClusterIPs = []string{o.Spec.ClusterIP}
		}
	case *apiextensionsv1.CustomResourceDefinition: // which has a scheme of its own
		apiextensionsv1.SetObjectDefaults_CustomResourceDefinition(o)
	}
}

// key names an object of this kind.
func (k kindRule) key(namespace, name string) desired.Key {
	switch {
	case k.group == desired.ClusterKey.Group:
		return desired.ClusterKey
	case k.clusterScoped:
		namespace = ""
	case namespace == "":
		namespace = metav1.NamespaceDefault
	}
	return desired.Key{Group: k.group, Kind: k.kind, Namespace: namespace, Name: name}
}

// typed decodes the object into the version of its rule and reports, from the
// fields as written, those that do not simply work. It returns nil when the
// object cannot be decoded.
func (r *rules) typed(src *source, data []byte, apiVersion string, rule kindRule) (runtime.Object, []desired.Problem) {
	if rule.make == nil {
		object := &metav1.PartialObjectMetadata{}
		if err := json.Unmarshal(data, object); err != nil {
			return nil, []desired.Problem{src.problem(desired.Error, "invalid", "metadata", typeMessage(err), "")}
		}
		return object, nil
	}
	other, converted := r.versions[apiVersion+" "+rule.kind]
	object := rule.make()
	if converted {
		object = other.make()
	}
	problems, usable := unmarshal(src, data, object)
	if !usable {
		return nil, problems
	}
	nameByContent(object, data)
	written := object
	if converted {
		var more []desired.Problem
		if written, object, more = convert(src, object, other, rule); object == nil {
			return nil, append(problems, more...)
		}
		problems = append(problems, more...)
	}
	if rule.status == Works {
		problems = append(problems, r.fields.report(src, written)...)
	}
	return object, problems
}

// validate applies Kubernetes' rules.
func (r *rules) validate(src *source, rule kindRule, object runtime.Object) []desired.Problem {
	var errs field.ErrorList
	var err error
	switch {
	case rule.validate != nil:
		errs, err = rule.validate(object)
	case rule.make == nil:
		errs = validateMeta(&object.(*metav1.PartialObjectMetadata).ObjectMeta, !rule.clusterScoped)
	default:
		m, accessErr := meta.Accessor(object)
		if accessErr != nil {
			return []desired.Problem{src.problem(desired.Error, "invalid", "metadata", accessErr.Error(), "")}
		}
		errs = validateMeta(&metav1.ObjectMeta{
			Name: m.GetName(), GenerateName: m.GetGenerateName(), Namespace: m.GetNamespace(), Labels: m.GetLabels(), Annotations: m.GetAnnotations(),
		}, !rule.clusterScoped)
	}
	if err != nil {
		return []desired.Problem{src.problem(desired.Error, "invalid", "", err.Error(), "")}
	}
	var problems []desired.Problem
	seen := map[string]bool{}
	for _, e := range errs {
		message := e.ErrorBody()
		if !seen[e.Field+"\x00"+message] && len(problems) < maxFileProblems {
			seen[e.Field+"\x00"+message] = true
			problems = append(problems, src.problem(desired.Error, "invalid", e.Field, message, validationHint(e, object)))
		}
	}
	return problems
}

// validationHint says what to do about what is not plain from the message.
func validationHint(e *field.Error, object runtime.Object) string {
	m := object.(metav1.Object)
	switch {
	case e.Field == "metadata.name" && m.GetName() == "" && m.GetGenerateName() != "":
		return "generateName makes a new object at every reading; write a name (only a Job can do without, for it is named after its content)"
	case strings.HasSuffix(e.Field, "metadata.labels") && strings.Contains(e.Detail, "selector"):
		return "the pods' labels must hold everything that spec.selector asks for"
	case e.Field == "spec.selector" && e.Type == field.ErrorTypeRequired:
		return "repeat the labels of the pod template under spec.selector.matchLabels"
	}
	return ""
}

// remarks are what is worth saying of a kind or an object as a whole.
func (r *rules) remarks(src *source, rule kindRule, object runtime.Object) []desired.Problem {
	switch rule.status {
	case NoEffect:
		return []desired.Problem{src.problem(desired.Note, "no-effect", "kind", fmt.Sprintf("%s has no effect here: %s", rule.kind, rule.reason), "")}
	case NotEnforced:
		return []desired.Problem{src.problem(desired.Warning, "not-enforced", "kind", fmt.Sprintf("%s is accepted but not enforced: %s", rule.kind, rule.reason), "")}
	}
	if s, ok := object.(*corev1.Secret); ok && len(s.Data)+len(s.StringData) > 0 {
		return []desired.Problem{src.problem(desired.Note, "secret-in-clear", "", "the repository holds the values of Secrets in the clear", "whoever reads the repository reads them")}
	}
	return nil
}

// settle brings an object into the form that Kubernetes would store: what is
// written only for convenience moves to where it is read from, and what only
// controllers write is dropped.
func settle(object runtime.Object) {
	if s, ok := object.(*corev1.Secret); ok {
		if s.Data == nil && len(s.StringData) > 0 {
			s.Data = map[string][]byte{}
		}
		for k, v := range s.StringData {
			s.Data[k] = []byte(v)
		}
		s.StringData = nil
	}
	if status := reflect.ValueOf(object).Elem().FieldByName("Status"); status.IsValid() {
		status.SetZero()
	}
	m := object.(metav1.Object)
	m.SetManagedFields(nil)
	m.SetResourceVersion("")
	m.SetSelfLink("")
	m.SetUID("")
	m.SetGeneration(0)
	m.SetCreationTimestamp(metav1.Time{})
}

// fingerprint hashes the canonical JSON of a defaulted object.
func fingerprint(object runtime.Object) string {
	data, err := json.Marshal(object)
	if err != nil { // every API type marshals; a value that does not is a bug of ours
		panic(fmt.Sprintf("marshal %T: %v", object, err))
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:16])
}
