package custom

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// structuralOf turns a schema into a structural one.
func structuralOf(s *apiextensionsv1.JSONSchemaProps) (*schema.Structural, error) {
	var internal apiextensions.JSONSchemaProps
	if err := apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(s, &internal, nil); err != nil {
		return nil, err
	}
	return schema.NewStructural(&internal)
}

// ValidateDefinition says what is wrong with a definition that has its
// defaults, as an API server does when one is created, except for rules in
// x-kubernetes-validations.
func ValidateDefinition(d *apiextensionsv1.CustomResourceDefinition) field.ErrorList {
	spec, path := &d.Spec, field.NewPath("spec")
	named := func(name string, prefix bool) []string {
		wrong := apivalidation.NameIsDNSSubdomain(name, prefix)
		if name != spec.Names.Plural+"."+spec.Group {
			wrong = append(wrong, `must be spec.names.plural+"."+spec.group`)
		}
		return wrong
	}
	errs := apivalidation.ValidateObjectMeta(&d.ObjectMeta, false, named, field.NewPath("metadata"))
	errs = append(errs, validateGroup(spec.Group, path.Child("group"))...)
	errs = append(errs, validateApproval(d)...)
	errs = append(errs, oneOf(path.Child("scope"), string(spec.Scope), string(apiextensionsv1.ClusterScoped), string(apiextensionsv1.NamespaceScoped))...)
	if spec.PreserveUnknownFields {
		errs = append(errs, field.Invalid(path.Child("preserveUnknownFields"), true, "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead"))
	}
	errs = append(errs, validateVersions(spec, path.Child("versions"))...)
	errs = append(errs, validateNames(&spec.Names, path.Child("names"))...)
	return append(errs, validateConversion(spec.Conversion, path.Child("conversion"))...)
}

func validateGroup(group string, path *field.Path) field.ErrorList {
	if group == "" {
		return field.ErrorList{field.Required(path, "")}
	}
	if wrong := validation.IsDNS1123Subdomain(group); len(wrong) > 0 {
		return field.ErrorList{field.Invalid(path, group, strings.Join(wrong, ","))}
	}
	if !strings.Contains(group, ".") {
		return field.ErrorList{field.Invalid(path, group, "should be a domain with at least one dot")}
	}
	return nil
}

// validateApproval keeps people from making kinds in groups that are
// Kubernetes' own without saying where that was agreed on.
func validateApproval(d *apiextensionsv1.CustomResourceDefinition) field.ErrorList {
	group := d.Spec.Group
	protected := group == "k8s.io" || group == "kubernetes.io" || strings.HasSuffix(group, ".k8s.io") || strings.HasSuffix(group, ".kubernetes.io")
	approval := d.Annotations[apiextensionsv1.KubeAPIApprovedAnnotation]
	if !protected || strings.HasPrefix(approval, "unapproved") || strings.HasPrefix(approval, "http://") || strings.HasPrefix(approval, "https://") {
		return nil
	}
	path := field.NewPath("metadata", "annotations").Key(apiextensionsv1.KubeAPIApprovedAnnotation)
	const see = "see https://github.com/kubernetes/enhancements/pull/1111"
	if approval == "" {
		return field.ErrorList{field.Required(path, "protected groups must have approval annotation \""+apiextensionsv1.KubeAPIApprovedAnnotation+"\", "+see)}
	}
	return field.ErrorList{field.Invalid(path, approval, "protected groups must have approval annotation \""+apiextensionsv1.KubeAPIApprovedAnnotation+"\" with either a URL or a reason starting with \"unapproved\", "+see)}
}

func oneOf(path *field.Path, value string, accepted ...string) field.ErrorList {
	switch {
	case value == "":
		return field.ErrorList{field.Required(path, "")}
	case !slices.Contains(accepted, value):
		return field.ErrorList{field.NotSupported(path, value, accepted)}
	}
	return nil
}

func validateNames(names *apiextensionsv1.CustomResourceDefinitionNames, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	label := func(path *field.Path, value, shape, prefix string, required bool) {
		if value == "" {
			if required {
				errs = append(errs, field.Required(path, ""))
			}
			return
		}
		if wrong := validation.IsDNS1035Label(shape); len(wrong) > 0 {
			errs = append(errs, field.Invalid(path, value, prefix+strings.Join(wrong, ",")))
		}
	}
	const mixed = "may have mixed case, but should otherwise match: "
	label(path.Child("plural"), names.Plural, names.Plural, "", true)
	label(path.Child("singular"), names.Singular, names.Singular, "", true)
	label(path.Child("kind"), names.Kind, strings.ToLower(names.Kind), mixed, true)
	label(path.Child("listKind"), names.ListKind, strings.ToLower(names.ListKind), mixed, true)
	for i, n := range names.ShortNames {
		label(path.Child("shortNames").Index(i), n, n, "", true)
	}
	for i, c := range names.Categories {
		label(path.Child("categories").Index(i), c, c, "", true)
	}
	if names.Kind != "" && names.Kind == names.ListKind {
		errs = append(errs, field.Invalid(path.Child("listKind"), names.ListKind, "kind and listKind may not be the same"))
	}
	return errs
}

func validateVersions(spec *apiextensionsv1.CustomResourceDefinitionSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	seen, stored := map[string]bool{}, 0
	for i := range spec.Versions {
		v, at := &spec.Versions[i], path.Index(i)
		if wrong := validation.IsDNS1035Label(v.Name); len(wrong) > 0 {
			errs = append(errs, field.Invalid(at.Child("name"), v.Name, strings.Join(wrong, ",")))
		}
		if seen[v.Name] {
			errs = append(errs, field.Invalid(path, v.Name, "must contain unique version names"))
		}
		seen[v.Name] = true
		if v.Storage {
			stored++
		}
		errs = append(errs, validateVersion(v, at)...)
	}
	if stored != 1 {
		errs = append(errs, field.Invalid(path, "", "must have exactly one version marked as storage version"))
	}
	return errs
}

func validateVersion(v *apiextensionsv1.CustomResourceDefinitionVersion, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if v.DeprecationWarning != nil {
		switch {
		case !v.Deprecated:
			errs = append(errs, field.Invalid(path.Child("deprecationWarning"), *v.DeprecationWarning, "can only be set for deprecated versions"))
		case *v.DeprecationWarning == "":
			errs = append(errs, field.Invalid(path.Child("deprecationWarning"), "", "must not be an empty string"))
		case len(*v.DeprecationWarning) > 256:
			errs = append(errs, field.Invalid(path.Child("deprecationWarning"), *v.DeprecationWarning, "must be <= 256 characters long"))
		}
	}
	at := path.Child("schema", "openAPIV3Schema")
	if v.Schema == nil || v.Schema.OpenAPIV3Schema == nil {
		errs = append(errs, field.Required(at, "schemas are required"))
	} else {
		errs = append(errs, validateSchema(v.Schema.OpenAPIV3Schema, at)...)
	}
	for i := range v.AdditionalPrinterColumns {
		errs = append(errs, validateColumn(&v.AdditionalPrinterColumns[i], path.Child("additionalPrinterColumns").Index(i))...)
	}
	return append(errs, validateScale(v.Subresources, path.Child("subresources", "scale"))...)
}

var (
	columnTypes   = []string{"boolean", "date", "integer", "number", "string"}
	columnFormats = []string{"byte", "date", "date-time", "double", "float", "int32", "int64", "password"}
)

func validateColumn(c *apiextensionsv1.CustomResourceColumnDefinition, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if c.Name == "" {
		errs = append(errs, field.Required(path.Child("name"), ""))
	}
	choice := "must be one of " + strings.Join(columnTypes, ",")
	switch {
	case c.Type == "":
		errs = append(errs, field.Required(path.Child("type"), choice))
	case !slices.Contains(columnTypes, c.Type):
		errs = append(errs, field.Invalid(path.Child("type"), c.Type, choice))
	}
	if c.Format != "" && !slices.Contains(columnFormats, c.Format) {
		errs = append(errs, field.Invalid(path.Child("format"), c.Format, "must be one of "+strings.Join(columnFormats, ",")))
	}
	return append(errs, validatePath(c.JSONPath, path.Child("jsonPath"))...)
}

// validatePath wants a simple path into an object.
func validatePath(text string, path *field.Path) field.ErrorList {
	switch {
	case text == "":
		return field.ErrorList{field.Required(path, "")}
	case !strings.HasPrefix(text, "."):
		return field.ErrorList{field.Invalid(path, text, "must be a simple json path starting with .")}
	}
	return nil
}

func validateScale(s *apiextensionsv1.CustomResourceSubresources, path *field.Path) field.ErrorList {
	if s == nil || s.Scale == nil {
		return nil
	}
	errs := below(s.Scale.SpecReplicasPath, ".spec.", path.Child("specReplicasPath"))
	errs = append(errs, below(s.Scale.StatusReplicasPath, ".status.", path.Child("statusReplicasPath"))...)
	if p := s.Scale.LabelSelectorPath; p != nil && *p != "" && !strings.HasPrefix(*p, ".spec.") && !strings.HasPrefix(*p, ".status.") {
		errs = append(errs, field.Invalid(path.Child("labelSelectorPath"), *p, "should be a json path under either .spec or .status"))
	}
	return errs
}

func below(text, prefix string, path *field.Path) field.ErrorList {
	switch {
	case text == "":
		return field.ErrorList{field.Required(path, "")}
	case !strings.HasPrefix(text, prefix):
		return field.ErrorList{field.Invalid(path, text, "should be a json path under "+strings.TrimSuffix(prefix, "."))}
	}
	return nil
}

func validateConversion(c *apiextensionsv1.CustomResourceConversion, path *field.Path) field.ErrorList {
	if c == nil {
		return nil
	}
	errs := oneOf(path.Child("strategy"), string(c.Strategy), string(apiextensionsv1.NoneConverter), string(apiextensionsv1.WebhookConverter))
	switch hook := path.Child("webhook"); {
	case c.Strategy != apiextensionsv1.WebhookConverter && c.Webhook != nil:
		errs = append(errs, field.Forbidden(hook, "should not be set when strategy is not set to Webhook"))
	case c.Strategy == apiextensionsv1.WebhookConverter && (c.Webhook == nil || c.Webhook.ClientConfig == nil):
		errs = append(errs, field.Required(hook.Child("clientConfig"), "required when strategy is set to Webhook"))
	case c.Strategy == apiextensionsv1.WebhookConverter:
		if config := c.Webhook.ClientConfig; (config.URL == nil) == (config.Service == nil) {
			errs = append(errs, field.Required(hook.Child("clientConfig"), "exactly one of url or service is required"))
		}
		if !slices.ContainsFunc(c.Webhook.ConversionReviewVersions, func(v string) bool { return v == "v1" || v == "v1beta1" }) {
			errs = append(errs, field.Invalid(hook.Child("conversionReviewVersions"), c.Webhook.ConversionReviewVersions, "must include at least one of v1, v1beta1"))
		}
	}
	return errs
}

// validateSchema wants a schema to be structural, with defaults that it accepts
// itself.
func validateSchema(s *apiextensionsv1.JSONSchemaProps, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if s.Nullable {
		errs = append(errs, field.Forbidden(path.Child("nullable"), "nullable cannot be true at the root"))
	}
	errs = append(errs, validateNode(s, path)...)
	structural, err := structuralOf(s)
	if err != nil {
		if len(errs) == 0 {
			errs = append(errs, field.Invalid(path, "", err.Error()))
		}
		return errs
	}
	errs = append(errs, schema.ValidateStructural(path, structural)...)
	if len(errs) == 0 {
		errs = validateDefaults(structural, path)
	}
	return errs
}

func unsupported(path *field.Path, name string) *field.Error {
	return field.Forbidden(path.Child(name), fmt.Sprintf("%s is not supported", name))
}
