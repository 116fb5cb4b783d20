//go:build e2e

package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/test/machine"
)

// set is a manifest of a workload whose pods write into a file of the machine
// when they start and when they end.
func set(kind, name, spec, host, version string) string {
	version = fmt.Sprintf("%q", version)
	return fmt.Sprintf(`
apiVersion: apps/v1
kind: %s
metadata: {name: %s}
spec:
  selector: {matchLabels: {app: %[2]s}}
%[3]s
  template:
    metadata: {labels: {app: %[2]s}}
    spec:
      volumes: [{name: host, hostPath: {path: %[4]s, type: DirectoryOrCreate}}]
      containers:
        - name: main
          image: %[5]s
          args: [serve, -first, "/host/log=start $(NAME)", -last, "/host/log=end $(NAME)"]
          env:
            - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
            - {name: INDEX, valueFrom: {fieldRef: {fieldPath: "metadata.labels['apps.kubernetes.io/pod-index']"}}}
            - {name: VERSION, value: %[6]s}
          readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}
          volumeMounts: [{name: host, mountPath: /host}]
`, kind, name, indent(spec, 2), host, insideImage, version)
}

const governing = "\n---\napiVersion: v1\nkind: Service\nmetadata: {name: db}\nspec: {clusterIP: None, selector: {app: db}, ports: [{name: http, port: 8080}]}\n"

// living are the pods with a name's prefix that are not on their way out, by
// name.
func (w *world) living(prefix string) map[string]*nodes.PodOverview {
	w.t.Helper()
	found := map[string]*nodes.PodOverview{}
	for _, h := range machine.Pods(w.overview(), "default", prefix) {
		if !h.Pod.Stopping {
			found[h.Key.Name] = h.Pod
		}
	}
	return found
}

// log empties the file that pods write into, and gives its lines.
func (w *world) log(dir string) []string {
	w.t.Helper()
	path := filepath.Join(dir, "log")
	text, err := os.ReadFile(path)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		w.t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}

// TestStatefulSet starts, finds, updates and stops pods by their ordinals.
func TestStatefulSet(t *testing.T) {
	w := newWorld(t)
	host := t.TempDir()
	apply := func(spec, version string) {
		t.Helper()
		w.clone.Write("db.yaml", set("StatefulSet", "db", "serviceName: db\n"+spec, host, version)+governing)
		w.clone.Apply(version)
	}
	apply("replicas: 3", "1")
	if diff := cmp.Diff([]string{"start db-0", "start db-1", "start db-2"}, w.log(host)); diff != "" {
		t.Errorf("ordered start:\n%s", diff)
	}
	first := w.living("db-")
	w.resolve(first)

	apply("replicas: 3", "2")
	want := []string{"end db-2", "start db-2", "end db-1", "start db-1", "end db-0", "start db-0"}
	if diff := cmp.Diff(want, w.log(host)); diff != "" {
		t.Errorf("rolling update:\n%s", diff)
	}
	second := w.living("db-")
	for name, p := range second {
		if p.UID == first[name].UID {
			t.Errorf("%s was not replaced", name)
		}
	}
	w.resolve(second)

	apply("replicas: 3\nupdateStrategy: {rollingUpdate: {partition: 2}}", "3")
	for name, version := range map[string]string{"db-0": "2", "db-1": "2", "db-2": "3"} {
		if got := ask[map[string]string](w, w.living(name)[name].Status.IP, "/env")["VERSION"]; got != version {
			t.Errorf("%s has version %s, want %s", name, got, version)
		}
	}
	w.log(host)

	apply("replicas: 1\nupdateStrategy: {rollingUpdate: {partition: 2}}", "3")
	w.Eventually(patience, "the pods are gone", func() error {
		if pods := machine.Pods(w.overview(), "default", "db-"); len(pods) != 1 {
			return fmt.Errorf("%d pods", len(pods))
		}
		return nil
	})
	if diff := cmp.Diff([]string{"end db-2", "end db-1"}, w.log(host)); diff != "" {
		t.Errorf("scaling down:\n%s", diff)
	}
}

// resolve looks every pod up by its own name, from another one.
func (w *world) resolve(pods map[string]*nodes.PodOverview) {
	w.t.Helper()
	for ordinal, name := range []string{"db-0", "db-1", "db-2"} {
		p := pods[name]
		if p == nil {
			w.t.Fatalf("no pod %s", name)
		}
		if host, err := get(p.Status.IP, "/"); err != nil || host != name {
			w.t.Errorf("%s says that its hostname is %q: %v", name, host, err)
		}
		if env := ask[map[string]string](w, p.Status.IP, "/env"); env["INDEX"] != fmt.Sprint(ordinal) || env["NAME"] != name {
			w.t.Errorf("%s has the index %s", name, env["INDEX"])
		}
		w.Eventually(patience, "the name of "+name, func() error {
			got, err := tryAsk[[]string](pods["db-0"].Status.IP, "/lookup", "type", "a", "name", name+".db.default.svc.cluster.local.")
			if err == nil && !slices.Equal(got, []string{p.Status.IP}) {
				err = fmt.Errorf("%v, want %s", got, p.Status.IP)
			}
			return err
		})
	}
}

// TestDaemonSet runs a pod on the node, replaces it, and takes it away when the
// node is no longer one that it is for.
func TestDaemonSet(t *testing.T) {
	w := newWorld(t)
	host := t.TempDir()
	apply := func(spec, version string) {
		t.Helper()
		w.clone.Write("logs.yaml", set("DaemonSet", "logs", spec, host, version))
		w.clone.Apply(spec + version)
	}
	apply("", "1")
	first := w.pod("logs-", ready)
	apply("", "2")
	if p := w.pod("logs-", ready); p.UID == first.UID {
		t.Error("the pod was not replaced")
	}
	lines := w.log(host)
	if len(lines) != 3 || !strings.HasPrefix(lines[1], "end ") {
		t.Errorf("the old pod ends before the new one starts: %v", lines)
	}
	apply("updateStrategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}", "3")
	w.Eventually(patience, "the old pod is gone", func() error {
		if pods := machine.Pods(w.overview(), "default", "logs-"); len(pods) != 1 {
			return fmt.Errorf("%d pods", len(pods))
		}
		return nil
	})
	if lines := w.log(host); len(lines) != 2 || !strings.HasPrefix(lines[0], "start ") {
		t.Errorf("with a surge, the new pod starts before the old one ends: %v", lines)
	}
	w.clone.Write("logs.yaml", strings.Replace(set("DaemonSet", "logs", "", host, "3"), "      volumes:", "      nodeSelector: {disk: fast}\n      volumes:", 1))
	w.clone.Apply("no node matches")
	w.Eventually(patience, "no pod is left", func() error {
		if pods := machine.Pods(w.overview(), "default", "logs-"); len(pods) != 0 {
			return fmt.Errorf("%d pods", len(pods))
		}
		return nil
	})
}

// TestSetRolloutsStop pushes what can't get ready: push, page and commands say
// what has failed and why, and the next push repairs it, though a pod in order
// never got ready.
func TestSetRolloutsStop(t *testing.T) {
	w := newWorld(t)
	host := t.TempDir()
	specs := map[string]string{
		"StatefulSet": "serviceName: db\nreplicas: 2",
		"DaemonSet":   "updateStrategy: {rollingUpdate: {maxUnavailable: 1}}",
	}
	manifest := func(kind, version string) string { return set(kind, "db", specs[kind], host, version) + governing }
	impatient := strings.NewReplacer("metadata: {name: db}\nspec:\n  selector", "metadata: {name: db, annotations: {tallyman.dev/progress-deadline-seconds: \"4\"}}\nspec:\n  selector")
	for _, c := range []struct {
		kind, what string
		before     bool // something good ran
		from, to   string
		far, why   string
	}{
		{"StatefulSet", "probe", true, `log=end $(NAME)"]`, `log=end $(NAME)", -ready=false]`, "0 of 2 updated pods available", "pod db-1: ContainersNotReady: container main: Readiness probe failed"},
		{"StatefulSet", "image", true, insideImage, machine.RegistryAddress + "/inside:none", "0 of 2 updated pods available", "inside:none"},
		{"StatefulSet", "stuck at ordinal 0", false, `log=end $(NAME)"]`, `log=end $(NAME)", -ready=false]`, "0 of 2 pods available", "pod db-0: ContainersNotReady: container main: Readiness probe failed"},
		{"DaemonSet", "probe", true, `log=end $(NAME)"]`, `log=end $(NAME)", -ready=false]`, "0 of 1 pod available", "Readiness probe failed"},
		{"DaemonSet", "image", true, insideImage, machine.RegistryAddress + "/inside:none", "0 of 1 pod available", "inside:none"},
	} {
		t.Run(c.kind+" "+c.what, func(t *testing.T) {
			w := w.in(t)
			w.clone.Write("keep.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: "+strings.ToLower(c.kind)+"}\n")
			w.clone.Write("db.yaml", "# nothing yet\n")
			if c.before {
				w.clone.Write("db.yaml", manifest(c.kind, "1"))
			}
			w.clone.Apply(c.kind + " good")
			w.clone.Write("db.yaml", strings.Replace(impatient.Replace(manifest(c.kind, "2")), c.from, c.to, 1))
			sha := w.clone.Commit(c.kind + " bad")
			r := w.clone.Push()
			verdict := c.kind + " default/db: ProgressDeadlineExceeded: no progress for 4s, " + c.far
			contains(t, "the push", r.Err, "failed: "+verdict, c.why, "git revert "+sha[:7])
			waited := w.Tally("wait", "--commit", sha, "--timeout", "10s")
			contains(t, "tally wait", waited.Err, verdict, c.why)
			s := w.Tally("status")
			contains(t, "tally status", s.Out, "ProgressDeadlineExceeded: no progress for 4s, "+c.far, c.why)
			if waited.Code != 3 || s.Code != 3 {
				t.Errorf("exit code %d of tally wait, %d of tally status, want 3", waited.Code, s.Code)
			}
			contains(t, "tally history", w.Tally("history").Out, verdict)
			page, err := w.page("/")
			if err != nil {
				t.Fatal(err)
			}
			contains(t, "the page", page, "ProgressDeadlineExceeded: no progress for 4s, "+c.far, c.why)
			w.clone.Write("db.yaml", manifest(c.kind, "3"))
			w.clone.Apply(c.kind + " better")
			for name, p := range w.living("db-") {
				if version := ask[map[string]string](w, p.Status.IP, "/env")["VERSION"]; version != "3" {
					t.Errorf("%s has version %s", name, version)
				}
			}
		})
	}
}

// TestReplicationController is a ReplicaSet under its older name.
func TestReplicationController(t *testing.T) {
	w := newWorld(t)
	manifest := func(version string) string {
		return fmt.Sprintf(`
apiVersion: v1
kind: ReplicationController
metadata: {name: old}
spec:
  replicas: 2
  template:
    metadata: {labels: {app: old}}
    spec: {containers: [{name: main, image: %s, env: [{name: VERSION, value: %q}]}]}
`, insideImage, version)
	}
	w.clone.Write("old.yaml", manifest("1")+service("old", ""))
	w.clone.Apply("start")
	first := w.living("old-")
	w.clone.Write("old.yaml", manifest("2")+service("old", ""))
	w.clone.Apply("change")
	for name, p := range w.living("old-") {
		if first[name] != nil {
			t.Errorf("%s was not replaced", name)
		}
		w.Eventually(patience, name+" answers", func() error {
			env, err := tryAsk[map[string]string](p.Status.IP, "/env")
			if err == nil && env["VERSION"] != "2" {
				err = fmt.Errorf("version %s", env["VERSION"])
			}
			return err
		})
	}
	if len(first) != 2 || len(w.living("old-")) != 2 {
		t.Errorf("%d pods, then %d, want 2", len(first), len(w.living("old-")))
	}
}
