package planner

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestPlanText reads testdata/plan/*.txtar: the revisions before.yaml and
// after.yaml, and plan.txt, which a push of the second prints.
func TestPlanText(t *testing.T) {
	files, err := filepath.Glob("testdata/plan/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			w := newWorld(t, "n1")
			w.push(parseObjects(t, archive.Files[0].Data)...)
			w.settle()
			p := w.push(parseObjects(t, archive.Files[1].Data)...)
			var got strings.Builder
			if err := p.Text(&got); err != nil {
				t.Fatal(err)
			}
			if *update {
				archive.Files[2].Data = []byte(got.String())
				if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(string(archive.Files[2].Data), got.String()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func parseObjects(t *testing.T, data []byte) []runtime.Object {
	t.Helper()
	kinds := map[string]func() runtime.Object{
		"Deployment": func() runtime.Object { return &appsv1.Deployment{} },
		"Pod":        func() runtime.Object { return &corev1.Pod{} },
		"Service":    func() runtime.Object { return &corev1.Service{} },
		"ConfigMap":  func() runtime.Object { return &corev1.ConfigMap{} },
		"Secret":     func() runtime.Object { return &corev1.Secret{} },
		"Namespace":  func() runtime.Object { return &corev1.Namespace{} },
	}
	var out []runtime.Object
	for doc := range strings.SplitSeq(string(data), "---\n") {
		if strings.TrimSpace(doc) == "" {
			continue
		}
		var kind struct{ Kind string }
		if err := yaml.Unmarshal([]byte(doc), &kind); err != nil || kinds[kind.Kind] == nil {
			t.Fatalf("kind %q: %v", kind.Kind, err)
		}
		v := kinds[kind.Kind]()
		if err := yaml.UnmarshalStrict([]byte(doc), v); err != nil {
			t.Fatal(err)
		}
		out = append(out, v)
	}
	return out
}

func TestTextIsClean(t *testing.T) {
	w := newWorld(t, "n1")
	p := w.push(deployment("web", 1, image("app\x1b[31m:1\nremote: all is well")))
	var out strings.Builder
	if err := p.Text(&out); err != nil {
		t.Fatal(err)
	}
	if strings.ContainsRune(out.String(), 0x1b) || strings.Count(out.String(), "\n") != 2 {
		t.Errorf("%q", out.String())
	}
}
