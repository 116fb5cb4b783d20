//go:build e2e

package bench

import (
	"fmt"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/test/machine"
)

// benchRepositories measures large repositories: what a push of one changed
// file costs, and what a first start does.
func benchRepositories(t *testing.T, all *figures) {
	t.Run("1000", func(t *testing.T) {
		m := machine.New(t)
		m.Up()
		c := m.Clone()
		manifests(c, 1000)
		push(t, c, "everything")
		var took, used []time.Duration
		for i := range 9 {
			manifest(c, 500, i+1)
			before := processorTime(t, m.PID())
			begun, ended := push(t, c, fmt.Sprintf("change %d", i))
			took, used = append(took, ended.Sub(begun)), append(used, processorTime(t, m.PID())-before)
		}
		all.add(t, lower("1000-manifests-one-changed", median(t, "1,000 manifests, push → applied", took).Seconds(), "s", 0.2))
		all.add(t, lower("1000-manifests-one-changed-processor", median(t, "processor time", used).Seconds(), "s", 0.3))
	})
	t.Run("5000", func(t *testing.T) {
		var first, change []time.Duration
		for range 3 {
			f, c := firstStart(t, 5000)
			first, change = append(first, f), append(change, c...)
		}
		all.add(t, lower("5000-manifests-first-start", median(t, "5,000 manifests, first start", first).Seconds(), "s", 5))
		all.add(t, lower("5000-manifests-one-changed", median(t, "5,000 manifests, push → applied", change).Seconds(), "s", 0.3))
	})
}

// firstStart starts tally on a local repository that it has never seen and
// waits until all of it is in force; then it changes one file again and again.
func firstStart(t *testing.T, count int) (first time.Duration, changes []time.Duration) {
	var m *machine.Machine
	t.Run("round", func(t *testing.T) {
		m = machine.New(t)
		bare := t.TempDir()
		c := m.CloneFrom(bare)
		c.Git("init", "--quiet", "--bare", "--initial-branch", "main", bare)
		manifests(c, count)
		sha := c.Commit("everything")
		c.Git("push", "--quiet", "origin", "main")
		begun := time.Now()
		m.Up("--repo", bare)
		m.WaitConverged(sha, patience)
		first = ended(t, m, sha).Sub(begun)
		for i := range 5 {
			manifest(c, count/2, i+1)
			sha := c.Commit("change")
			begun := time.Now()
			c.Git("push", "--quiet", "origin", "main")
			m.WaitConverged(sha, patience)
			changes = append(changes, ended(t, m, sha).Sub(begun))
		}
	})
	return first, changes
}

// ended is when a revision was in force with all that it says, by the history.
func ended(t *testing.T, m *machine.Machine, sha string) time.Time {
	t.Helper()
	o, err := m.Overview()
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range o.History {
		if e.Revision.SHA == sha && e.Outcome == nodes.OutcomeConverged {
			return e.Ended
		}
	}
	t.Fatalf("revision %s has not converged", sha)
	return time.Time{}
}

// manifests writes a repository of so many files.
func manifests(c *machine.Clone, count int) {
	for i := range count {
		manifest(c, i, 0)
	}
}

// manifest writes file number i: ConfigMaps, Services and Deployments without
// replicas in turn, so that everything but containers is measured.
func manifest(c *machine.Clone, i, version int) {
	content := ""
	switch i % 4 {
	case 0, 1:
		content = fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: config-%[1]d\n  labels: {app: app-%[1]d}\ndata:\n  version: \"%[2]d\"\n  greeting: hello from %[1]d\n", i, version)
	case 2:
		content = fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata:\n  name: service-%[1]d\nspec:\n  selector: {app: app-%[1]d}\n  ports:\n    - {name: http, port: 80, targetPort: 8080}\n", i)
	case 3:
		content = fmt.Sprintf(`apiVersion: apps/v1
kind: Deployment
metadata:
  name: app-%[1]d
  labels: {app: app-%[1]d}
spec:
  replicas: 0
  selector:
    matchLabels: {app: app-%[1]d}
  template:
    metadata:
      labels: {app: app-%[1]d}
    spec:
      containers:
        - name: app
          image: 127.0.0.1:7490/app:1
          env: [{name: VERSION, value: "%[2]d"}]
          ports: [{name: http, containerPort: 8080}]
          readinessProbe: {httpGet: {path: /healthz, port: http}}
          resources:
            requests: {cpu: 10m, memory: 16Mi}
            limits: {memory: 64Mi}
`, i, version)
	}
	c.Write(fmt.Sprintf("apps/%02d/object-%d.yaml", i%20, i), content)
}
