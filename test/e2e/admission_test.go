//go:build e2e

package e2e_test

import (
	"testing"
)

// TestAdmission pushes rules and workloads: what a LimitRange gives is what
// the containers get, changing it rolls the pods of a Deployment and lets a bare
// pod be, what a quota or the pod security standards forbid is refused, and a
// custom resource is kept as data.
func TestAdmission(t *testing.T) {
	w := newWorld(t)
	limits := func(memory string) string {
		return "apiVersion: v1\nkind: LimitRange\nmetadata: {name: limits}\nspec: {limits: [{type: Container, default: {memory: " + memory + "}}]}\n" +
			"---\napiVersion: v1\nkind: ResourceQuota\nmetadata: {name: quota}\nspec: {hard: {limits.memory: 300Mi}}\n"
	}
	const told = "env: [{name: LIMIT, valueFrom: {resourceFieldRef: {resource: limits.memory}}}]"
	bare := pod("bare", "containers: [{name: main, image: "+insideImage+", "+told+"}]")
	w.clone.Write("rules.yaml", limits("64Mi"))
	w.clone.Write("web.yaml", deployment("web", 1, told)+bare)
	first, _ := w.clone.Apply("limited")
	if got := ask[map[string]string](w, w.ip("web"), "/env")["LIMIT"]; got != "67108864" {
		t.Errorf("the container is limited to %q bytes, want 64 MiB", got)
	}
	kept := w.pod("bare", ready).UID

	w.clone.Write("rules.yaml", limits("96Mi"))
	second, output := w.clone.Apply("a higher default")
	contains(t, "the push", output, "~ Deployment default/web", "~ Pod default/bare: the pod stays as it was made")
	if got := ask[map[string]string](w, w.ip("web"), "/env")["LIMIT"]; got != "100663296" {
		t.Errorf("the container is limited to %q bytes, want 96 MiB", got)
	}
	if now := w.pod("bare", ready).UID; now != kept {
		t.Errorf("the bare pod was replaced")
	}
	if first == second {
		t.Fatal("the second push pushed nothing")
	}

	w.clone.Write("web.yaml", deployment("web", 3, told+"\nsecurityContext: {privileged: true}")+bare)
	w.clone.Write("cluster.yaml", "apiVersion: tallyman.dev/v1alpha1\nkind: Cluster\nmetadata: {name: c}\nspec: {podSecurity: {enforce: baseline}}\n")
	w.clone.Commit("too much of everything")
	r := w.clone.Push()
	w.unmoved("a push beyond quota and baseline", r, second)
	contains(t, "the refusal", r.Err, "exceeded quota: quota, requested: limits.memory=96Mi, used: limits.memory=288Mi, limited: limits.memory=300Mi",
		`violates PodSecurity "baseline:latest": privileged (container "main" must not set securityContext.privileged=true)`)
	w.clone.Git("reset", "--quiet", "--hard", second)

	w.clone.Write("custom.yaml", `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: widgets, kind: Widget}
  versions:
    - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, properties: {size: {type: integer}}}}}
---
apiVersion: example.com/v1
kind: Widget
metadata: {name: one}
size: 1
`)
	_, output = w.clone.Apply("a kind of one's own")
	contains(t, "the push", output, "+ Widget default/one", "converged in ")
	found := false
	for _, o := range w.overview().Objects {
		found = found || o.Key.Kind == "Widget" && o.Key.Name == "one"
	}
	if !found {
		t.Error("the overview does not list the custom resource")
	}
}
