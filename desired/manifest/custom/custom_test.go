package custom

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// definition reads one with a schema, in YAML, of its version v1.
func definition(t testing.TB, schema string) *apiextensionsv1.CustomResourceDefinition {
	t.Helper()
	d := &apiextensionsv1.CustomResourceDefinition{}
	const head = `
metadata: {name: widgets.example.com}
spec: {group: example.com, scope: Namespaced, names: {plural: widgets, kind: Widget}}
`
	if err := yaml.Unmarshal([]byte(head), d); err != nil {
		t.Fatal(err)
	}
	s := &apiextensionsv1.JSONSchemaProps{}
	if err := yaml.Unmarshal([]byte(schema), s); err != nil {
		t.Fatal(err)
	}
	d.Spec.Versions = []apiextensionsv1.CustomResourceDefinitionVersion{{
		Name: "v1", Served: true, Storage: true, Schema: &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: s},
	}}
	apiextensionsv1.SetObjectDefaults_CustomResourceDefinition(d)
	return d
}

func TestDefinitions(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*apiextensionsv1.CustomResourceDefinition)
		schema string
		want   []string
	}{
		"fine": {},
		"no group": {
			change: func(d *apiextensionsv1.CustomResourceDefinition) { d.Spec.Group, d.Name = "example", "widgets.example" },
			want:   []string{`spec.group: Invalid value: "example": should be a domain with at least one dot`},
		},
		"a group of Kubernetes": {
			change: func(d *apiextensionsv1.CustomResourceDefinition) {
				d.Spec.Group, d.Name = "a.k8s.io", "widgets.a.k8s.io"
			},
			want: []string{`metadata.annotations[api-approved.kubernetes.io]: Required value: protected groups must have approval annotation "api-approved.kubernetes.io", ` +
				`see https://github.com/kubernetes/enhancements/pull/1111`},
		},
		"names": {
			change: func(d *apiextensionsv1.CustomResourceDefinition) {
				d.Spec.Names.ListKind, d.Spec.Names.ShortNames = "Widget", []string{"W"}
			},
			want: []string{
				`spec.names.shortNames[0]: Invalid value: "W": a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, ` +
					`and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')`,
				`spec.names.listKind: Invalid value: "Widget": kind and listKind may not be the same`,
			},
		},
		"no storage version": {
			change: func(d *apiextensionsv1.CustomResourceDefinition) { d.Spec.Versions[0].Storage = false },
			want:   []string{`spec.versions: Invalid value: "": must have exactly one version marked as storage version`},
		},
		"columns": {
			change: func(d *apiextensionsv1.CustomResourceDefinition) {
				d.Spec.Versions[0].AdditionalPrinterColumns = []apiextensionsv1.CustomResourceColumnDefinition{{Name: "a", Type: "text", JSONPath: "spec"}}
			},
			want: []string{
				`spec.versions[0].additionalPrinterColumns[0].type: Invalid value: "text": must be one of boolean,date,integer,number,string`,
				`spec.versions[0].additionalPrinterColumns[0].jsonPath: Invalid value: "spec": must be a simple json path starting with .`,
			},
		},
		"scale": {
			change: func(d *apiextensionsv1.CustomResourceDefinition) {
				d.Spec.Versions[0].Subresources = &apiextensionsv1.CustomResourceSubresources{Scale: &apiextensionsv1.CustomResourceSubresourceScale{SpecReplicasPath: ".status.replicas"}}
			},
			want: []string{
				`spec.versions[0].subresources.scale.specReplicasPath: Invalid value: ".status.replicas": should be a json path under .spec`,
				`spec.versions[0].subresources.scale.statusReplicasPath: Required value`,
			},
		},
		"conversion": {
			change: func(d *apiextensionsv1.CustomResourceDefinition) {
				d.Spec.Conversion = &apiextensionsv1.CustomResourceConversion{Strategy: "Webhook"}
			},
			want: []string{`spec.conversion.webhook.clientConfig: Required value: required when strategy is set to Webhook`},
		},
		"not structural": {
			schema: `{type: object, properties: {a: {properties: {b: {type: string}}}, c: {anyOf: [{type: string}], type: string}}}`,
			want: []string{
				`spec.versions[0].schema.openAPIV3Schema.properties[a].type: Required value: must not be empty for specified object fields`,
				`spec.versions[0].schema.openAPIV3Schema.properties[c].anyOf[0].type: Forbidden: must be empty to be structural`,
			},
		},
		"forbidden": {
			schema: `{type: object, properties: {a: {type: string, $ref: other}, b: {type: array, uniqueItems: true, items: {type: string}}}}`,
			want: []string{
				`spec.versions[0].schema.openAPIV3Schema.properties[a].$ref: Forbidden: $ref is not supported`,
				`spec.versions[0].schema.openAPIV3Schema.properties[b].uniqueItems: Forbidden: uniqueItems cannot be set to true since the runtime complexity becomes quadratic`,
			},
		},
		"lists": {
			schema: `{type: object, properties: {a: {type: array, x-kubernetes-list-type: map, x-kubernetes-list-map-keys: [k, l], items: {type: object, properties: {k: {type: string}}}}}}`,
			want: []string{
				`spec.versions[0].schema.openAPIV3Schema.properties[a].items.properties[k].default: Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property`,
				`spec.versions[0].schema.openAPIV3Schema.properties[a].x-kubernetes-list-map-keys: Invalid value: ["k","l"]: entries must all be names of item properties`,
			},
		},
		"defaults": {
			schema: `{type: object, properties: {a: {type: string, enum: [x], default: z}, b: {type: object, default: {c: 1}}}}`,
			want: []string{
				`spec.versions[0].schema.openAPIV3Schema.properties[a].default: Unsupported value: "z": supported values: "x"`,
				`spec.versions[0].schema.openAPIV3Schema.properties[b].default: Invalid value: {"c":1}: must not have unknown fields`,
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if c.schema == "" {
				c.schema = "type: object"
			}
			d := definition(t, c.schema)
			if c.change != nil {
				c.change(d)
			}
			var got []string
			for _, e := range ValidateDefinition(d) {
				got = append(got, e.Error())
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

const widgets = `
type: object
properties:
  spec:
    type: object
    required: [size]
    properties:
      size: {type: integer, maximum: 9}
      lit: {type: boolean, default: true}
      nested:
        type: object
        default: {}
        properties: {deep: {type: string, default: x, nullable: true}}
      list: {type: array, items: {type: object, properties: {n: {type: integer, default: 7}}}}
      free: {type: object, additionalProperties: {type: string, default: why}}
      any: {type: object, x-kubernetes-preserve-unknown-fields: true}
      embedded: {type: object, x-kubernetes-embedded-resource: true, x-kubernetes-preserve-unknown-fields: true}
`

func check(t testing.TB, d *Definition, object map[string]any) (unknown, errs []string) {
	t.Helper()
	v, err := d.Version("v1")
	if err != nil || v == nil {
		t.Fatalf("version %v, %v", v, err)
	}
	found, invalid := v.Check(&unstructured.Unstructured{Object: object}, true)
	for _, e := range invalid {
		errs = append(errs, e.Error())
	}
	return found, errs
}

func widget(t testing.TB, spec string) map[string]any {
	t.Helper()
	object := map[string]any{}
	if err := yaml.Unmarshal([]byte("apiVersion: example.com/v1\nkind: Widget\nmetadata: {name: w, namespace: shop}\nspec: "+spec), &object); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	u := &unstructured.Unstructured{}
	if err := u.UnmarshalJSON(text); err != nil {
		t.Fatal(err)
	}
	return u.Object
}

func TestObjects(t *testing.T) {
	d := NewDefinition(definition(t, widgets))
	for name, c := range map[string]struct {
		spec, want    string
		unknown, errs []string
	}{
		"defaults": {
			spec: `{size: 1}`, want: `{size: 1, lit: true, nested: {deep: x}}`,
		},
		"nulls": {
			spec: `{size: 1, lit: null, nested: {deep: null}, list: null, free: {a: null, b: z}}`,
			want: `{size: 1, lit: true, nested: {deep: null}, free: {a: why, b: z}}`,
		},
		"items": {
			spec: `{size: 1, list: [{}, {n: 1}]}`, want: `{size: 1, lit: true, nested: {deep: x}, list: [{n: 7}, {n: 1}]}`,
		},
		"unknown": {
			spec: `{size: 1, sise: 2, any: {is: fine}, list: [{m: 1}]}`, want: `{size: 1, lit: true, nested: {deep: x}, any: {is: fine}, list: [{n: 7}]}`,
			unknown: []string{"spec.list[0].m", "spec.sise"},
		},
		"wrong": {
			spec: `{size: 10, lit: "yes"}`, want: `{size: 10, lit: "yes", nested: {deep: x}}`,
			errs: []string{
				`spec.lit: Invalid value: "string": spec.lit in body must be of type boolean: "string"`,
				`spec.size: Invalid value: 10: spec.size in body should be less than or equal to 9`,
			},
		},
		"missing": {
			spec: `{}`, want: `{lit: true, nested: {deep: x}}`, errs: []string{`spec.size: Required value`},
		},
		"embedded": {
			spec: `{size: 1, embedded: {apiVersion: v1}}`, want: `{size: 1, lit: true, nested: {deep: x}, embedded: {apiVersion: v1}}`,
			errs: []string{`spec.embedded.kind: Required value`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			object := widget(t, c.spec)
			unknown, errs := check(t, d, object)
			slices.Sort(errs)
			if diff := cmp.Diff(c.unknown, unknown); diff != "" {
				t.Errorf("unknown (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(c.errs, errs); diff != "" {
				t.Errorf("errors (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(widget(t, c.want), object); diff != "" {
				t.Errorf("object (-want +got):\n%s", diff)
			}
		})
	}
}

// TestServing validates as an API server does what a schema alone does not say.
func TestServing(t *testing.T) {
	crd := definition(t, `
type: object
properties:
  spec:
    type: object
    properties:
      port: {x-kubernetes-int-or-string: true}
      ports: {type: array, items: {x-kubernetes-int-or-string: true, anyOf: [{type: integer}, {type: string}]}}
      count: {type: integer, format: uint8}
      small: {type: integer, format: int32}
      when: {type: string, format: date-time}
      odd: {type: string, format: colour}
  status:
    type: object
    required: [phase]
    properties: {phase: {type: string}}
`)
	for spec, want := range map[string][]string{
		`{port: "80", ports: [1, http], count: 300, small: 5, when: "2026-01-01T00:00:00Z", odd: any}`: nil,
		`{port: [1], ports: [true], small: 3000000000, when: now}`: {
			`spec.port: Invalid value: "array": spec.port in body must be of type integer,string: "array"`,
			`spec.ports[0]: Invalid value: "boolean": spec.ports[0] in body must be of type integer,string: "boolean"`,
			`spec.ports[0]: Invalid value: "": "spec.ports[0]" must validate at least one schema (anyOf)`,
			`spec.ports[0]: Invalid value: "boolean": spec.ports[0] in body must be of type integer: "boolean"`,
			`spec.small: Invalid value: "": Checked value must be of type integer with format int32 in spec.small`,
			`spec.when: Invalid value: "now": spec.when in body must be of type date-time: "now"`,
		},
	} {
		unknown, errs := check(t, NewDefinition(crd), widget(t, spec))
		slices.Sort(errs)
		slices.Sort(want)
		if diff := cmp.Diff(want, errs); diff != "" || len(unknown) > 0 {
			t.Errorf("%s: unknown %v, errors (-want +got):\n%s", spec, unknown, diff)
		}
	}
	object := widget(t, "{}")
	object["status"] = map[string]any{}
	if _, errs := check(t, NewDefinition(crd), object); len(errs) != 1 {
		t.Errorf("a status that is written: %v", errs)
	}
	crd.Spec.Versions[0].Subresources = &apiextensionsv1.CustomResourceSubresources{Status: &apiextensionsv1.CustomResourceSubresourceStatus{}}
	if _, errs := check(t, NewDefinition(crd), object); len(errs) != 0 || object["status"] != nil {
		t.Errorf("a status of controllers: %v, %v", errs, object["status"])
	}
}

// FuzzObject holds any object to any definition that is valid: that ends, and an
// object that is accepted is accepted again, unchanged.
func FuzzObject(f *testing.F) {
	f.Add(widgets, `{"spec":{"size":1,"list":[{}],"free":{"a":null}}}`)
	f.Add("type: object\nx-kubernetes-preserve-unknown-fields: true", `{"a":[1,{"b":null}]}`)
	f.Add("type: object\nproperties: {a: {x-kubernetes-int-or-string: true}, b: {type: array, x-kubernetes-list-type: set, items: {type: string}}}", `{"a":"1","b":["x","x"]}`)
	f.Add("type: object\nproperties: {a: {type: string, format: date-time, pattern: '('}}", `{"a":"now"}`)
	f.Fuzz(func(t *testing.T, schema, text string) {
		s := &apiextensionsv1.JSONSchemaProps{}
		if len(schema)+len(text) > 1<<12 || yaml.Unmarshal([]byte(schema), s) != nil {
			return
		}
		d := definition(t, "type: object")
		d.Spec.Versions[0].Schema.OpenAPIV3Schema = s
		if len(ValidateDefinition(d)) > 0 {
			return
		}
		object := map[string]any{}
		if json.Unmarshal([]byte(text), &object) != nil || object == nil {
			return
		}
		object["apiVersion"], object["kind"] = "example.com/v1", "Widget"
		object["metadata"] = map[string]any{"name": "w", "namespace": "shop"}
		ready := NewDefinition(d)
		if _, errs := check(t, ready, object); len(errs) > 0 {
			return
		}
		before := (&unstructured.Unstructured{Object: object}).DeepCopy().Object
		if unknown, errs := check(t, ready, object); len(unknown)+len(errs) > 0 || !cmp.Equal(before, object) {
			t.Errorf("accepted, but not again: %v %v\n%s", unknown, errs, cmp.Diff(before, object))
		}
	})
}
