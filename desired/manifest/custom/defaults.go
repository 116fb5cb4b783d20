package custom

import (
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apimachinery/pkg/runtime"
)

// within calls see for each value inside x that the schema knows: what holds it
// says set and drop for one that may be replaced or removed.
func within(x any, s *schema.Structural, see func(value any, of *schema.Structural, set func(any), drop func())) {
	switch x := x.(type) {
	case map[string]any:
		for name := range x {
			of := propertyOf(s, name)
			if of == nil {
				continue
			}
			see(x[name], of, func(v any) { x[name] = v }, func() { delete(x, name) })
		}
	case []any:
		for i := range x {
			if s.Items != nil {
				see(x[i], s.Items, func(v any) { x[i] = v }, func() {})
			}
		}
	}
}

// propertyOf is the schema of a property, nil if there is none.
func propertyOf(s *schema.Structural, name string) *schema.Structural {
	if p, ok := s.Properties[name]; ok {
		return &p
	}
	if s.AdditionalProperties != nil {
		return s.AdditionalProperties.Structural
	}
	return nil
}

// dropNulls removes a null where the schema allows none and has no default for it.
func dropNulls(x any, s *schema.Structural) {
	if s == nil {
		return
	}
	within(x, s, func(value any, of *schema.Structural, _ func(any), drop func()) {
		if value == nil && !of.Nullable && of.Default.Object == nil {
			drop()
			return
		}
		dropNulls(value, of)
	})
}

// fill gives what is left out, or null where the schema allows none, its default.
func fill(x any, s *schema.Structural) {
	if s == nil {
		return
	}
	if m, ok := x.(map[string]any); ok {
		for name := range s.Properties {
			if _, written := m[name]; !written && s.Properties[name].Default.Object != nil {
				m[name] = runtime.DeepCopyJSONValue(s.Properties[name].Default.Object)
			}
		}
	}
	within(x, s, func(value any, of *schema.Structural, set func(any), _ func()) {
		if value == nil && !of.Nullable && of.Default.Object != nil {
			value = runtime.DeepCopyJSONValue(of.Default.Object)
			set(value)
		}
		fill(value, of)
	})
}
