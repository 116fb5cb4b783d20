package custom

import (
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/kube-openapi/pkg/validation/spec"
	"k8s.io/kube-openapi/pkg/validation/strfmt"
	"k8s.io/kube-openapi/pkg/validation/validate"
)

// validatorOf makes the validator that an API server has for a schema.
func validatorOf(s *schema.Structural) *validate.SchemaValidator {
	served := s.ToKubeOpenAPI()
	serve(served)
	return validate.NewSchemaValidator(served, nil, "", strfmt.Default)
}

// serve changes a schema, and those inside it, as an API server does before it
// validates by it: int-or-string becomes a choice of types, and formats that it
// does not know are dropped.
func serve(s *spec.Schema) {
	if is, _ := s.Extensions.GetBool("x-kubernetes-int-or-string"); is {
		s.Type = spec.StringOrArray{"integer", "string"}
	}
	if !knownFormat(s) {
		s.Format = ""
	}
	for name := range s.Properties {
		property := s.Properties[name]
		serve(&property)
		s.Properties[name] = property
	}
	if s.Items != nil && s.Items.Schema != nil {
		serve(s.Items.Schema)
	}
	if s.AdditionalProperties != nil && s.AdditionalProperties.Schema != nil {
		serve(s.AdditionalProperties.Schema)
	}
	for _, list := range [][]spec.Schema{s.AllOf, s.AnyOf, s.OneOf} {
		for i := range list {
			serve(&list[i])
		}
	}
	if s.Not != nil {
		serve(s.Not)
	}
}

func knownFormat(s *spec.Schema) bool {
	var only string
	if len(s.Type) == 1 {
		only = s.Type[0]
	}
	switch only {
	case "", "string":
		return strfmt.Default.ContainsName(s.Format)
	case "integer":
		return s.Format == "int32" || s.Format == "int64"
	case "number":
		return s.Format == "float" || s.Format == "double"
	}
	return false
}
