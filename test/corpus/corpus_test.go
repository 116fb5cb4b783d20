package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/tallyman-dev/tallyman/desired/manifest"
)

// collection is a small one, with something of every kind in it.
const collection = `
-- manifests/A/repo/web.yaml --
apiVersion: v1
kind: ConfigMap
metadata: {name: web}
data: {a: b}
---
# nothing but a comment
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec: {containers: [{name: c, image: c, envFrom: [{configMapRef: {name: elsewhere}}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {port: 80}
-- manifests/A/repo/ingress.yaml --
apiVersion: extensions/v1beta1
kind: Ingress
metadata: {name: old}
spec: {backend: {serviceName: web, servicePort: 80}}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: new}
spec: {defaultBackend: {service: {name: web, port: {number: 80}}}}
---
apiVersion: v1
kind: ComponentStatus
metadata: {name: one}
-- manifests/A/repo/app/kustomization.yaml --
resources: [pod.yaml]
namePrefix: my-
-- manifests/A/repo/app/pod.yaml --
apiVersion: v1
kind: Pod
metadata: {name: web}
spec: {containers: [{name: c, image: c}]}
-- manifests/F-oracle/api/testdata/HEAD/core.v1.ConfigMap.json --
{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "generation": 7}, "data": {"a": "b"}}
-- manifests/F-oracle/api/testdata/HEAD/core.v1.ConfigMap.yaml --
apiVersion: v1
kind: ConfigMap
metadata: {name: a, generation: 7}
data: {a: b}
-- rendered/kustomize/A/repo/app.yaml --
apiVersion: v1
kind: Pod
metadata: {name: my-web}
spec: {containers: [{name: c, image: c}]}
-- rendered/kustomize-results.tsv --
A	A/repo/app/kustomization.yaml	ok	1
-- verdicts.tsv --
path	doc	apiVersion	kind	name	category	verdict	reason
A/repo/web.yaml	0	v1	ConfigMap	web	builtin-ga	valid	
A/repo/web.yaml	1	v1	Pod	web	builtin-ga	valid	
A/repo/web.yaml	2	v1	Service	web	builtin-ga	strict-error	unknown field "spec.port"
A/repo/ingress.yaml	0	extensions/v1beta1	Ingress	old	builtin-removed	unregistered	
A/repo/ingress.yaml	1	networking.k8s.io/v1	Ingress	new	builtin-ga	valid	
A/repo/ingress.yaml	2	v1	ComponentStatus	one	builtin-ga	valid	
`

func unpack(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	for _, f := range txtar.Parse([]byte(text)).Files {
		name := filepath.Join(dir, filepath.FromSlash(f.Name))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, f.Data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// applications is the section that another program writes.
const applications = "<!-- whole applications -->\nkept\n<!-- end of whole applications -->\n"

func TestRun(t *testing.T) {
	dir := unpack(t, collection)
	page := filepath.Join(dir, "page.md")
	if err := os.WriteFile(page, []byte("before\n"+manifest.TriedBegin+"old"+applications+manifest.TriedEnd+"\nafter\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := run(t.Context(), &out, dir, page, true); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| **all** | 3 | 2 | 0 | 0 | 1 | 66.7 % |",
		"| Ingress, IngressClass and NetworkPolicy, not enforced | 1 | 1 | 0 |",
		"| API versions that Kubernetes has removed, converted or without effect | 1 | 1 | 0 |",
		"| **all** | 1 | 1 | 1 | 1 | 100.0 % |",
		"| `unsupported: ComponentStatus` | 1 |",
		"Of 1 roots that kustomize builds, 1 give the same objects here.",
		"1 are of kinds that snapshots hold; 1 of them lose",
		"rejected for [unsupported: ComponentStatus]: A/repo/ingress.yaml document 2",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("not said: %s\n%s", want, out.String())
		}
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(text), "before\n"+manifest.TriedBegin+"\n\n## Tried") || !strings.HasSuffix(string(text), "\n"+applications+manifest.TriedEnd+"\nafter\n") {
		t.Errorf("the page is\n%s", text)
	}
}

// A difference from kustomize, and a document that is not there, are faults.
func TestFaults(t *testing.T) {
	dir := unpack(t, strings.Replace(collection, "{name: my-web}", "{name: your-web}", 1)+"A/repo/web.yaml\t9\tv1\tPod\tnobody\tbuiltin-ga\tvalid\t\n")
	err := run(t.Context(), &bytes.Buffer{}, dir, "", false)
	if err == nil || !strings.Contains(err.Error(), "A/repo/app: not what kustomize builds") || !strings.Contains(err.Error(), "document 9 is not there") {
		t.Errorf("got %v", err)
	}
}

func TestMissing(t *testing.T) {
	want := map[string]any{"a": []any{1.0, map[string]any{"b": "c"}}, "d": true}
	got := map[string]any{"a": []any{1.0, map[string]any{"b": "other"}}, "more": 1.0}
	if diff := cmp.Diff([]string{".a[1].b", ".d"}, missing(want, got, "")); diff != "" {
		t.Error(diff)
	}
	if m := missing(want, want, ""); len(m) > 0 {
		t.Errorf("missing in itself: %v", m)
	}
}
