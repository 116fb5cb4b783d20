package custom

import (
	"fmt"
	"maps"
	"slices"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var schemaTypes = []string{"array", "boolean", "integer", "number", "object", "string"}

// validateNode checks one schema and those below it for what may not be in any.
func validateNode(s *apiextensionsv1.JSONSchemaProps, path *field.Path) field.ErrorList {
	if s == nil {
		return nil
	}
	errs := validateForbidden(s, path)
	if s.Type != "" && !slices.Contains(schemaTypes, s.Type) {
		errs = append(errs, field.NotSupported(path.Child("type"), s.Type, schemaTypes))
	}
	if s.XPreserveUnknownFields != nil && !*s.XPreserveUnknownFields {
		errs = append(errs, field.Invalid(path.Child("x-kubernetes-preserve-unknown-fields"), false, "must be true or undefined"))
	}
	if a := s.AdditionalProperties; a != nil {
		if len(s.Properties) > 0 && (!a.Allows || a.Schema != nil) {
			errs = append(errs, field.Forbidden(path.Child("additionalProperties"), "additionalProperties and properties are mutual exclusive"))
		}
		errs = append(errs, validateNode(a.Schema, path.Child("additionalProperties"))...)
	}
	errs = append(errs, validateMapType(s, path)...)
	errs = append(errs, validateListType(s, path)...)
	for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
		property := s.Properties[name]
		errs = append(errs, validateNode(&property, path.Child("properties").Key(name))...)
	}
	if s.Items != nil {
		errs = append(errs, validateNode(s.Items.Schema, path.Child("items"))...)
	}
	errs = append(errs, validateNode(s.Not, path.Child("not"))...)
	for name, list := range map[string][]apiextensionsv1.JSONSchemaProps{"allOf": s.AllOf, "anyOf": s.AnyOf, "oneOf": s.OneOf} {
		for i := range list {
			errs = append(errs, validateNode(&list[i], path.Child(name).Index(i))...)
		}
	}
	return errs
}

func validateForbidden(s *apiextensionsv1.JSONSchemaProps, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"definitions", len(s.Definitions) > 0},
		{"dependencies", len(s.Dependencies) > 0},
		{"patternProperties", len(s.PatternProperties) > 0},
		{"additionalItems", s.AdditionalItems != nil},
		{"id", s.ID != ""},
		{"$schema", s.Schema != ""},
		{"$ref", s.Ref != nil},
	} {
		if f.set {
			errs = append(errs, unsupported(path, f.name))
		}
	}
	if s.UniqueItems {
		errs = append(errs, field.Forbidden(path.Child("uniqueItems"), "uniqueItems cannot be set to true since the runtime complexity becomes quadratic"))
	}
	if s.Items != nil && len(s.Items.JSONSchemas) > 0 {
		errs = append(errs, field.Forbidden(path.Child("items"), "items must be a schema object and not an array"))
	}
	return errs
}

func validateMapType(s *apiextensionsv1.JSONSchemaProps, path *field.Path) field.ErrorList {
	if s.XMapType == nil {
		return nil
	}
	errs := mustBe(s.Type, "object", "x-kubernetes-map-type", path)
	return append(errs, oneOf(path.Child("x-kubernetes-map-type"), *s.XMapType, "atomic", "granular")...)
}

// mustBe wants the type that an extension is for.
func mustBe(got, want, extension string, path *field.Path) field.ErrorList {
	message := fmt.Sprintf("must be %s if %s is specified", want, extension)
	switch got {
	case want:
		return nil
	case "":
		return field.ErrorList{field.Required(path.Child("type"), message)}
	}
	return field.ErrorList{field.Invalid(path.Child("type"), got, message)}
}

func validateListType(s *apiextensionsv1.JSONSchemaProps, path *field.Path) field.ErrorList {
	const list, keys = "x-kubernetes-list-type", "x-kubernetes-list-map-keys"
	if s.XListType == nil {
		if len(s.XListMapKeys) > 0 {
			return field.ErrorList{field.Required(path.Child(list), "must be map if x-kubernetes-list-map-keys is non-empty")}
		}
		return nil
	}
	errs := mustBe(s.Type, "array", list, path)
	errs = append(errs, oneOf(path.Child(list), *s.XListType, "atomic", "map", "set")...)
	switch {
	case *s.XListType != "map":
		if len(s.XListMapKeys) > 0 {
			errs = append(errs, field.Invalid(path.Child(list), *s.XListType, "must be map if x-kubernetes-list-map-keys is non-empty"))
		}
		return errs
	case len(s.XListMapKeys) == 0:
		errs = append(errs, field.Required(path.Child(keys), "must not be empty if x-kubernetes-list-type is map"))
	}
	if s.Items == nil || s.Items.Schema == nil {
		return append(errs, field.Required(path.Child("items"), "must have a schema if x-kubernetes-list-type is map"))
	}
	if s.Items.Schema.Type != "object" {
		return append(errs, field.Invalid(path.Child("items", "type"), s.Items.Schema.Type, "must be object if parent array's x-kubernetes-list-type is map"))
	}
	for i, k := range s.XListMapKeys {
		property, ok := s.Items.Schema.Properties[k]
		switch {
		case !ok:
			errs = append(errs, field.Invalid(path.Child(keys), s.XListMapKeys, "entries must all be names of item properties"))
		case property.Type == "array" || property.Type == "object":
			errs = append(errs, field.Invalid(path.Child("items", "properties").Key(k).Child("type"), property.Type, "must be a scalar type if parent array's x-kubernetes-list-type is map"))
		case property.Default == nil && !slices.Contains(s.Items.Schema.Required, k):
			errs = append(errs, field.Required(path.Child("items", "properties").Key(k).Child("default"), "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property"))
		case slices.Contains(s.XListMapKeys[:i], k):
			errs = append(errs, field.Invalid(path.Child(keys), s.XListMapKeys, "must not contain duplicate entries"))
		}
	}
	return errs
}

// validateDefaults wants every default to be valid by its own schema, and
// nothing in it that the schema does not know.
func validateDefaults(s *schema.Structural, path *field.Path) field.ErrorList {
	if s == nil {
		return nil
	}
	var errs field.ErrorList
	if s.Default.Object != nil {
		at := path.Child("default")
		pruned := runtime.DeepCopyJSONValue(s.Default.Object)
		if unknown := pruning.PruneWithOptions(pruned, s, s.XEmbeddedResource, schema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true}); len(unknown) > 0 {
			errs = append(errs, field.Invalid(at, s.Default.Object, "must not have unknown fields"))
		}
		for _, e := range fieldErrors(validatorOf(s).Validate(s.Default.Object)) {
			e.Field = at.String()
			errs = append(errs, e)
		}
	}
	errs = append(errs, validateDefaults(s.Items, path.Child("items"))...)
	for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
		property := s.Properties[name]
		errs = append(errs, validateDefaults(&property, path.Child("properties").Key(name))...)
	}
	if s.AdditionalProperties != nil {
		errs = append(errs, validateDefaults(s.AdditionalProperties.Structural, path.Child("additionalProperties"))...)
	}
	return errs
}
