package stacks

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tallyman-dev/tallyman/desired/manifest"
	"github.com/tallyman-dev/tallyman/test/corpus/stacks/plan"
)

// corpusOf writes a corpus of one directory.
func corpusOf(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, "manifests", "app", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "stacks.tsv"), []byte("directory\tdocuments\tworkloads\napp\t2\t1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

const webManifests = `
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: web, port: 80, targetPort: 8080}, {name: dns, port: 53, protocol: UDP}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      securityContext: {runAsNonRoot: true}
      volumes: [{name: programs, emptyDir: {}}]
      initContainers:
        - {name: init, image: 'busybox:1.36', command: [sh, -c, 'sleep 1'], volumeMounts: [{name: programs, mountPath: /out}]}
      containers:
        - name: web
          image: gcr.io/shop/web:v1
          command: [bin/run]
          workingDir: /app
          ports: [{name: http, containerPort: 8081}]
          readinessProbe: {httpGet: {path: /, port: 9000}}
          livenessProbe: {exec: {command: [/check]}}
        - {name: given, image: given, command: [/programs/a/run], volumeMounts: [{name: programs, mountPath: /programs/}]}
        - {name: side, image: 'side@sha256:cb111d1bd870a6a471385a4a69ad17469d326e9dd91e0e455350cacf36e1b3ee'}
`

func TestImagesDoWhatManifestsAskOfThem(t *testing.T) {
	all, err := Read(t.Context(), corpusOf(t, map[string]string{"web.yaml": webManifests}), "")
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 1 || all[0].Refused != nil {
		t.Fatalf("stacks %+v", all)
	}
	got := map[string]*Image{}
	for _, i := range Images(all) {
		own := *i
		own.Links = nil
		for _, l := range i.Links {
			if l == "/check" || strings.HasPrefix(l, "/app/") {
				own.Links = append(own.Links, l)
			}
		}
		got[i.Name] = &own
	}
	want := map[string]*Image{
		"library/busybox:1.36": {Name: "library/busybox:1.36", User: "65532", Plan: plan.Plan{Once: []plan.Once{{Line: []string{"sh", "-c", "sleep 1"}}}, Gives: []string{"/out/a/run"}}},
		"library/given:latest": {Name: "library/given:latest", User: "65532"},
		"shop/web:v1":          {Name: "shop/web:v1", User: "65532", Links: []string{"/app/bin/run", "/check"}, Plan: plan.Plan{TCP: []int{8080, 8081, 9000}, UDP: []int{53}}},
		"library/side:pinned-cb111d1bd870": {
			Name: "library/side:pinned-cb111d1bd870", User: "65532",
			Pinned: []string{"side@sha256:cb111d1bd870a6a471385a4a69ad17469d326e9dd91e0e455350cacf36e1b3ee"},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// A command line that one pod may end with is that of a Job, which must; one that
// must go on elsewhere ends in the Job's pods alone.
func TestOthersDoNotKeepAJobFromEnding(t *testing.T) {
	const manifests = `
apiVersion: v1
kind: Pod
metadata: {name: once}
spec: {restartPolicy: Never, containers: [{name: c, image: c, command: [count]}, {name: d, image: c, command: [wait]}]}
---
apiVersion: batch/v1
kind: Job
metadata: {name: count}
spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: c, command: [count]}, {name: d, image: c, command: [go, "on"]}]}}}
---
apiVersion: v1
kind: Pod
metadata: {name: always}
spec: {containers: [{name: c, image: c, command: [go, "on"]}]}
`
	all, err := Read(t.Context(), corpusOf(t, map[string]string{"all.yaml": manifests}), "")
	if err != nil || all[0].Refused != nil {
		t.Fatal(err, all)
	}
	if diff := cmp.Diff([]plan.Once{{Line: []string{"count"}}, {Line: []string{"go", "on"}, Jobs: []string{"count"}}}, Images(all)[0].Plan.Once); diff != "" {
		t.Error(diff)
	}
}

func configMap(name string) string {
	return "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: " + name + "}\n---\n"
}

func TestObjectsThatAreWrittenTwiceComeInRevisions(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  [][]string
	}{
		"once":       {map[string]string{"a.yaml": configMap("a"), "b.yaml": configMap("b")}, [][]string{{"a.yaml", "b.yaml"}}},
		"twice":      {map[string]string{"a.yaml": configMap("x"), "b.yaml": configMap("x"), "c.yaml": configMap("c")}, [][]string{{"a.yaml"}, {"b.yaml", "c.yaml"}}},
		"all in one": {map[string]string{"all.yaml": configMap("a") + configMap("b"), "b.yaml": configMap("b"), "c.yaml": configMap("a")}, [][]string{{"all.yaml"}, {"b.yaml", "c.yaml"}}},
		"kustomization out of it": {
			map[string]string{
				"kustomization.yaml": "resources: [a.yaml, ../base]\n", "a.yaml": configMap("a"),
				"../base/kustomization.yaml": "resources: [b.yaml]\n", "../base/b.yaml": configMap("b"), "../other/c.yaml": configMap("c"),
				"../base/own/kustomization.yaml": "resources: [d.yaml]\n", "../base/own/d.yaml": configMap("d"),
			}, [][]string{{"app/a.yaml", "app/kustomization.yaml", "base/b.yaml", "base/kustomization.yaml"}},
		},
		"kustomization": {map[string]string{"kustomization.yaml": "resources: [a.yaml, sub/b.yaml]\n", "a.yaml": configMap("a"), "sub/b.yaml": configMap("b")}, [][]string{{"a.yaml", "kustomization.yaml", "sub/b.yaml"}}},
		"folders":       {map[string]string{"a.yaml": configMap("a"), "sub/b.yaml": configMap("b")}, [][]string{{"a.yaml"}}},
	} {
		t.Run(name, func(t *testing.T) {
			all, err := Read(t.Context(), corpusOf(t, c.files), "")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, all[0].Revisions); diff != "" {
				t.Error(diff)
			}
			if all[0].Refused != nil || len(all[0].Snapshots) != len(c.want) {
				t.Errorf("refused: %v, %d snapshots", all[0].Refused, len(all[0].Snapshots))
			}
		})
	}
}

func TestResultsReplaceEarlierOnesOnThePage(t *testing.T) {
	page := filepath.Join(t.TempDir(), "page.md")
	if err := os.WriteFile(page, []byte("before\n"+manifest.TriedBegin+"\nnumbers\n"+manifest.TriedEnd+"\nafter\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, results := range [][]Result{
		{{Name: "a/old", Failed: "push", Reason: "no"}},
		{{Name: "a/good"}, {Name: "a/bad", Failed: "converge", Reason: "a | b"}, {Name: "b/bad", Failed: "push", Reason: "no", Kubernetes: "no there"}},
	} {
		if err := WritePage(page, results); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{
		"before\n" + manifest.TriedBegin + "\nnumbers\n" + pageBegin, "| a | 2 | 1 | 0 | 1 | 50.0 % |", "| b | 1 | 0 | 1 | 0 | 0.0 % |",
		"| **all** | 3 | 1 | 1 | 1 | 33.3 % |", `| a/bad | converge | a \| b | should converge |`, "| b/bad | push | no | no there |",
		pageEnd + manifest.TriedEnd + "\nafter\n",
	} {
		if !strings.Contains(string(text), part) {
			t.Errorf("the page lacks %q:\n%s", part, text)
		}
	}
	if strings.Contains(string(text), "a/old") {
		t.Errorf("the old results are still there:\n%s", text)
	}
}
