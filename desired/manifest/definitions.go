package manifest

import (
	"fmt"
	"strings"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensionsv1beta1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1beta1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	sigsjson "sigs.k8s.io/json"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/desired/manifest/custom"
)

const (
	definitionsGroup = "apiextensions.k8s.io"
	definitionKind   = "CustomResourceDefinition"
)

func definitionKinds() []kindRule {
	return []kindRule{{
		kind: definitionKind, group: definitionsGroup, version: "v1", status: NoEffect, clusterScoped: true,
		reason: "custom resources are held to it and shown, and no controller here acts on them",
		make:   fresh[apiextensionsv1.CustomResourceDefinition], validate: validateDefinition,
	}}
}

func validateDefinition(v runtime.Object) (field.ErrorList, error) {
	return custom.ValidateDefinition(v.(*apiextensionsv1.CustomResourceDefinition)), nil
}

// convertDefinition reads v1beta1, which need not have a schema and keeps
// unknown fields if it does not say otherwise.
func convertDefinition(o runtime.Object) (runtime.Object, error) {
	old := o.(*apiextensionsv1beta1.CustomResourceDefinition)
	apiextensionsv1beta1.SetObjectDefaults_CustomResourceDefinition(old)
	var internal apiextensions.CustomResourceDefinition
	if err := apiextensionsv1beta1.Convert_v1beta1_CustomResourceDefinition_To_apiextensions_CustomResourceDefinition(old, &internal, nil); err != nil {
		return nil, fmt.Errorf("convert from v1beta1: %w", err)
	}
	out := &apiextensionsv1.CustomResourceDefinition{}
	if err := apiextensionsv1.Convert_apiextensions_CustomResourceDefinition_To_v1_CustomResourceDefinition(&internal, out, nil); err != nil {
		return nil, fmt.Errorf("convert to v1: %w", err)
	}
	preserve := out.Spec.PreserveUnknownFields
	out.Spec.PreserveUnknownFields = false
	for i := range out.Spec.Versions {
		v := &out.Spec.Versions[i]
		if v.Schema == nil || v.Schema.OpenAPIV3Schema == nil {
			v.Schema = &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{Type: "object", XPreserveUnknownFields: &preserve}}
		}
		if preserve {
			v.Schema.OpenAPIV3Schema.XPreserveUnknownFields = &preserve
		}
	}
	return out, nil
}

// customResource is an object of a kind that the tables do not have: only the
// revision as a whole tells whether it is defined.
type customResource struct {
	// object is immutable, as all that parsing gives.
	object *unstructured.Unstructured
	// undefined is what is said when no definition is found.
	undefined desired.Problem
}

// mayBeCustom reports whether a kind that the tables do not have may be defined
// by a repository.
func mayBeCustom(apiVersion, code string) bool {
	group, _, versioned := strings.Cut(apiVersion, "/")
	return versioned && strings.Contains(group, ".") && group != desired.ClusterKey.Group && (code == "missing-definition" || code == "unknown-kind")
}

// custom reads an object whose definition is looked for later.
func (r *rules) custom(src *source, data []byte, key desired.Key, undefined desired.Problem) ([]*entry, []desired.Problem) {
	object := &unstructured.Unstructured{}
	if err := sigsjson.UnmarshalCaseSensitivePreserveInts(data, &object.Object); err != nil {
		return undecodable(src, "", typeMessage(err))
	}
	return []*entry{{src: src, key: key, custom: &customResource{object: object, undefined: undefined}}}, nil
}

// definitions are those of a revision by the kind that they define.
type definitions struct {
	kinds map[schema.GroupKind]*custom.Definition
	// broken are the groups for which a definition could not be read.
	broken map[string]bool
	// noted are the versions whose unchecked rules were mentioned.
	noted map[*custom.Version]bool
}

// define holds the custom resources of a revision to their definitions.
func (f *findings) define() {
	var found definitions
	for i, e := range f.entries {
		if e.custom == nil {
			continue
		}
		if found.kinds == nil {
			found = f.definitions()
		}
		f.entries[i] = f.resource(e, &found)
	}
}

func (f *findings) definitions() definitions {
	d := definitions{kinds: map[schema.GroupKind]*custom.Definition{}, broken: map[string]bool{}, noted: map[*custom.Version]bool{}}
	for _, e := range f.entries {
		if e.key.Kind != definitionKind || e.key.Group != definitionsGroup {
			continue
		}
		if e.object == nil {
			_, group, _ := strings.Cut(e.key.Name, ".")
			d.broken[group] = true
			continue
		}
		crd := e.object.Value.(*apiextensionsv1.CustomResourceDefinition)
		d.kinds[schema.GroupKind{Group: crd.Spec.Group, Kind: crd.Spec.Names.Kind}] = custom.NewDefinition(crd)
	}
	return d
}

// resource gives the entry of a custom resource with its object, if it has a
// definition; what was read of the file stays as it is.
func (f *findings) resource(e *entry, found *definitions) *entry {
	resolved := *e
	group := schema.GroupKind{Group: e.key.Group, Kind: e.key.Kind}
	definition := found.kinds[group]
	if definition == nil {
		if !found.broken[e.key.Group] {
			f.problems = append(f.problems, e.custom.undefined)
		}
		return &resolved
	}
	say := func(severity desired.Severity, code, field, message, hint string) {
		f.report(e, severity, code, field, message, hint)
	}
	gvk := e.custom.object.GroupVersionKind()
	version, err := definition.Version(gvk.Version)
	switch {
	case err != nil: // the definition's own problem is reported
		return &resolved
	case version == nil:
		say(desired.Error, "unknown-kind", "apiVersion", fmt.Sprintf("%s serves no version %s of %s", definition.Name, gvk.Version, gvk.Kind),
			"it serves "+strings.Join(definition.Served(), ", "))
		return &resolved
	}
	object := e.custom.object.DeepCopy()
	rule := kindRule{group: gvk.Group, version: gvk.Version, kind: gvk.Kind, clusterScoped: !definition.Namespaced()}
	f.problems = append(f.problems, adopt(e.src, object, rule)...)
	unknown, errs := version.Check(object, definition.Namespaced())
	for _, path := range unknown {
		say(desired.Error, "unknown-field", path, fmt.Sprintf("unknown field %q", path), "the definition "+definition.Name+" does not have it")
	}
	for _, err := range errs {
		path := strings.TrimPrefix(strings.TrimPrefix(err.Field, "<nil>"), ".")
		say(desired.Error, "invalid", path, err.ErrorBody(), "")
	}
	f.remark(e, definition, version, found.noted)
	settle(object)
	resolved.key = rule.key(object.GetNamespace(), object.GetName())
	resolved.object = &desired.Object{Key: resolved.key, From: e.src.place(), Value: object, Fingerprint: fingerprint(object)}
	return &resolved
}

// remark notes that a custom resource does nothing, and what is not checked.
func (f *findings) remark(e *entry, d *custom.Definition, v *custom.Version, noted map[*custom.Version]bool) {
	f.report(e, desired.Note, "no-effect", "kind", fmt.Sprintf("%s has no effect here: it is kept and shown as data, and no controller here acts on it", e.key.Kind), "")
	if v.Deprecated {
		warning := fmt.Sprintf("%s %s is deprecated", e.custom.object.GetAPIVersion(), e.key.Kind)
		if v.DeprecationWarning != nil {
			warning = *v.DeprecationWarning
		}
		f.report(e, desired.Note, "deprecated", "apiVersion", warning, "")
	}
	if v.Rules > 0 && !noted[v] {
		noted[v] = true
		f.report(e, desired.Note, "not-checked", "kind", fmt.Sprintf("%d rules in x-kubernetes-validations of %s are not checked", v.Rules, d.Name), "Kubernetes checks them")
	}
}
