//go:build e2e

package e2e_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/test/machine"
)

const (
	// soon makes failures final in a few seconds, in which a busy machine can
	// still find out why.
	soon = 4
	// late is for revisions that get well.
	late = 120
)

// rolling keeps the old pods; its deadline is in seconds.
func rolling(deadline int, image, more string) string {
	manifest := strings.Replace(deployment("web", 2, more), insideImage, image, 1)
	strategy := fmt.Sprintf("  replicas: 2\n  progressDeadlineSeconds: %d\n  strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}\n", deadline)
	return strings.Replace(manifest, "  replicas: 2\n", strategy, 1)
}

// TestRolloutStops pushes what can't get ready: the old pods serve on, one
// sentence says why everywhere, and the next push recovers.
func TestRolloutStops(t *testing.T) {
	w := newWorld(t)
	w.clone.Write("web.yaml", rolling(late, insideImage, "env: [{name: V, value: good}]")+service("web", "type: NodePort"))
	w.clone.Apply("good")
	for _, c := range []struct{ name, manifest, why string }{
		{"image not there", rolling(soon, machine.RegistryAddress+"/inside:none", ""), "inside:none"},
		{"never ready", rolling(soon, insideImage, "args: [serve, -ready=false]"), "Readiness probe failed"},
		{"ends at once", rolling(soon, insideImage, `args: [end, "no luck today", "7"]`), "exit code 7"},
		{"root refused", rolling(soon, insideImage, "securityContext: {runAsNonRoot: true}"), "runAsNonRoot"},
	} {
		t.Run(c.name, func(t *testing.T) { stops(w.in(t), c.manifest, c.why) })
	}
	w.clone.Write("web.yaml", rolling(late, insideImage, "env: [{name: V, value: better}]")+service("web", "type: NodePort"))
	w.clone.Apply("better")
	if s := w.Tally("status"); s.Code != 0 {
		t.Errorf("tally status: exit code %d: %s", s.Code, s.Out)
	}
}

func stops(w *world, manifest, why string) {
	w.clone.Write("web.yaml", manifest+service("web", "type: NodePort"))
	sha := w.clone.Commit("bad")
	r := w.clone.Push()
	if r.Code != 0 {
		w.t.Errorf("exit code %d of a push whose rollout failed, want 0: %s", r.Code, r.Err)
	}
	contains(w.t, "the push", r.Err, "failed: ", why, "git revert "+sha[:7])
	waited := w.Tally("wait", "--commit", sha, "--timeout", "10s")
	if waited.Code != 3 {
		w.t.Errorf("tally wait: exit code %d, want 3", waited.Code)
	}
	contains(w.t, "tally wait", waited.Err, why)
	s := w.Tally("status")
	if s.Code != 3 {
		w.t.Errorf("tally status: exit code %d, want 3", s.Code)
	}
	contains(w.t, "tally status", s.Out, why)
	page, err := w.page("/")
	if err != nil {
		w.t.Fatal(err)
	}
	contains(w.t, "the page", page, why)
	old := 0
	for _, p := range machine.Pods(w.overview(), "default", "web-") {
		if p.Pod.Status.Ready && !p.Pod.Stopping {
			old++
		}
	}
	if old != 2 {
		w.t.Errorf("%d old pods are ready, want 2", old)
	}
	if o := w.overview(); o.Outcome != nodes.OutcomeFailed {
		w.t.Errorf("outcome %s, want failed", o.Outcome)
	}
	for range 10 {
		if _, err := get(w.clusterIP("web"), "/"); err != nil {
			w.t.Errorf("the service: %v", err)
		}
	}
}

// service is what the server shows of a service.
func (w *world) service(name string) nodes.ServiceOverview {
	w.t.Helper()
	for _, s := range w.overview().Services {
		if s.Key.Namespace == "default" && s.Key.Name == name {
			return s
		}
	}
	w.t.Fatalf("no service %s", name)
	return nodes.ServiceOverview{}
}

// clusterIP is a service's address with its first port.
func (w *world) clusterIP(name string) string {
	w.t.Helper()
	s := w.service(name)
	return fmt.Sprintf("%s:%d", s.ClusterIPs[0], s.Ports[0].Port)
}
