package custom

import (
	"context"
	"maps"
	"slices"
	"strings"

	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel/model"
	"k8s.io/apimachinery/pkg/util/validation/field"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/cel/environment"
)

// rulesOf makes the rules in x-kubernetes-validations of a schema ready; nil
// where there are none.
func rulesOf(s *schema.Structural) *cel.Validator {
	return cel.NewValidator(s, true, celconfig.PerCallLimit)
}

// checkRules evaluates rules for an object that its schema accepts, within the
// cost that an API server allows. Those that compare it with what it was are
// passed over, as when an object is created.
func (v *Version) checkRules(object map[string]any) field.ErrorList {
	errs, _ := v.rules.Validate(context.Background(), nil, v.schema, object, nil, celconfig.RuntimeCELCostBudget)
	return errs
}

// eachRule calls see for every schema with rules, and where it is.
func eachRule(s *schema.Structural, root bool, path *field.Path, see func(s *schema.Structural, root bool, path *field.Path)) {
	if s == nil {
		return
	}
	if len(s.XValidations) > 0 {
		see(s, root, path.Child("x-kubernetes-validations"))
	}
	eachRule(s.Items, false, path.Child("items"), see)
	for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
		property := s.Properties[name]
		eachRule(&property, false, path.Child("properties").Key(name), see)
	}
	if s.AdditionalProperties != nil {
		eachRule(s.AdditionalProperties.Structural, false, path.Child("additionalProperties"), see)
	}
}

// transitions counts the rules that compare an object with what it was.
func transitions(s *schema.Structural) int {
	n := 0
	eachRule(s, true, nil, func(s *schema.Structural, _ bool, _ *field.Path) {
		for _, rule := range s.XValidations {
			if strings.Contains(rule.Rule, cel.OldScopedVarName) {
				n++
			}
		}
	})
	return n
}

// validateRules wants every rule to compile. What rules may cost is not
// estimated: it is bounded when they are evaluated.
func validateRules(s *schema.Structural, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	eachRule(s, true, path, func(s *schema.Structural, root bool, path *field.Path) {
		env := environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion())
		compiled, err := cel.Compile(s, model.SchemaDeclType(s, root || s.XEmbeddedResource), celconfig.PerCallLimit, env, cel.NewExpressionsEnvLoader())
		if err != nil {
			errs = append(errs, field.Invalid(path, "", err.Error()))
			return
		}
		for i, c := range compiled {
			at, rule := path.Index(i), s.XValidations[i]
			if c.Error != nil {
				errs = append(errs, field.Invalid(at.Child("rule"), rule.Rule, oneLine(c.Error.Detail)))
			}
			if c.MessageExpressionError != nil {
				errs = append(errs, field.Invalid(at.Child("messageExpression"), rule.MessageExpression, oneLine(c.MessageExpressionError.Detail)))
			}
		}
	})
	return errs
}

// oneLine leaves the drawing out that a compiler's message has below each line.
func oneLine(message string) string {
	lines := slices.DeleteFunc(strings.Split(message, "\n"), func(line string) bool { return strings.HasPrefix(line, " |") })
	return strings.Join(lines, "; ")
}
