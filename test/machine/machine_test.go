//go:build e2e

package machine

import (
	"strings"
	"testing"
)

func TestOnePodRunsAndGoes(t *testing.T) {
	m := New(t)
	ref := m.PushImage("github.com/tallyman-dev/tallyman/examples-repo/app", "hello:1")
	m.Up()
	c := m.Clone()
	c.Write("pod.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: one}\nspec:\n  containers: [{name: hello, image: '"+ref+"'}]\n")
	_, output := c.Apply("one pod")
	if !strings.Contains(output, "converged in") {
		t.Errorf("the push said:\n%s", output)
	}
	o, err := m.Overview()
	if err != nil {
		t.Fatal(err)
	}
	if pods := Pods(o, "default", "one"); len(pods) != 1 || !pods[0].Pod.Status.Ready {
		t.Errorf("pods: %+v, want one, ready", pods)
	}
}
