package planner

import (
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/tallyman-dev/tallyman/nodes"
)

func customResource(group, kind, name string, spec map[string]any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": group + "/v1", "kind": kind, "metadata": map[string]any{"name": name, "namespace": "default"}, "spec": spec,
	}}
}

// TestCustomResourcesAreData plans objects that no rule knows, some of which
// have the kind, namespace and name of ones that do things.
func TestCustomResourcesAreData(t *testing.T) {
	w := newWorld(t, "n1")
	kinds := []string{"Deployment", "Service", "ConfigMap", "Namespace", "EndpointSlice", "Widget"}
	of := func(size int64) []*unstructured.Unstructured {
		var out []*unstructured.Unstructured
		for _, kind := range kinds {
			out = append(out, customResource("example.com", kind, "web", map[string]any{"size": size}))
		}
		return out
	}
	push := func(resources []*unstructured.Unstructured) *Plan {
		objects := []runtime.Object{deployment("web", 1), serviceFor("web"), configMap("web", map[string]string{"a": "b"})}
		for _, r := range resources {
			objects = append(objects, r)
		}
		p := w.push(objects...)
		w.settle()
		return p
	}
	p := push(of(1))
	if len(p.Difference) != len(kinds)+3 || len(w.pods("web")) != 1 {
		t.Fatalf("%d pods, difference %+v", len(w.pods("web")), p.Difference)
	}
	p = push(of(2))
	var changed []string
	for _, d := range p.Difference {
		if d.Op != Update || len(d.Fields) != 1 || d.Fields[0].Path != "spec.size" {
			t.Errorf("difference %+v", d)
		}
		changed = append(changed, d.Object.Kind)
	}
	slices.Sort(changed)
	if want := slices.Sorted(slices.Values(kinds)); !slices.Equal(changed, want) {
		t.Errorf("changed %q, want %q", changed, want)
	}
	seen := 0
	for _, o := range w.s.Overview(w.now).Objects {
		if o.Key.Group == "example.com" {
			seen++
			if o.Health != nodes.Healthy {
				t.Errorf("%s is %s", o.Key, o.Health)
			}
		}
	}
	if seen != len(kinds) {
		t.Errorf("the overview lists %d custom resources, want %d", seen, len(kinds))
	}
	p = push(nil)
	for _, d := range p.Difference {
		if d.Op != Delete || d.Object.Group != "example.com" {
			t.Errorf("difference %+v", d)
		}
	}
	if len(p.Difference) != len(kinds) || len(w.pods("web")) != 1 {
		t.Errorf("%d pods, difference %+v", len(w.pods("web")), p.Difference)
	}
}
