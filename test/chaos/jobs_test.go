//go:build e2e

package chaos

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/tallyman-dev/tallyman/nodes"
)

const jobYAML = `apiVersion: batch/v1
kind: Job
metadata: {name: work, annotations: {tallyman.dev/run: "%d"}}
spec:
  completions: 12
  parallelism: 3
  backoffLimit: 100
  template:
    spec:
      restartPolicy: Never
      volumes: [{name: out, hostPath: {path: %s}}]
      containers:
      - name: main
        image: %s
        args: [/out/work]
        env: [{name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
        volumeMounts: [{name: out, mountPath: /out}]
`

// TestKillsInTheMiddleOfJobs kills parts of Tallyman, and containerd, while a
// Job runs: no pod's container is started twice, each is counted once, and what
// has completed does not run again, with the record deleted or the containers
// gone.
func TestKillsInTheMiddleOfJobs(t *testing.T) {
	random := seed(t)
	c := newCluster(t)
	out := filepath.Join(c.Dir, "out")
	if err := os.MkdirAll(out, 0o777); err != nil {
		t.Fatal(err)
	}
	put := func(run int) { c.clone.Write("work.yaml", fmt.Sprintf(jobYAML, run, out, c.images[0])) }
	put(0)
	c.clone.Commit("work")
	if r := c.clone.Push("-o", "tally.wait=false"); r.Code != 0 {
		t.Fatalf("push: exit code %d: %s", r.Code, r.Err)
	}
	for range 4 {
		<-time.After(time.Duration(random.Int64N(int64(900 * time.Millisecond)))) // the moment itself; nothing is waited for
		victim := victims[random.IntN(len(victims))]
		t.Logf("kills %s", victim.name)
		c.kill(victim.up, victim.keeper, victim.containerd, func() {})
	}
	done := c.completes("work", time.Time{})
	began, ended := c.worked(out)
	// A pod that was being started when containerd was killed has failed without
	// a beginning, one whose exit code was lost has failed with an end.
	if began > done.Job.Succeeded+done.Job.Failed || ended < done.Job.Succeeded || done.Job.Succeeded != 12 {
		t.Errorf("%d pods began and %d ended; counted: %+v", began, ended, done.Job)
	}
	still := func(after string) {
		t.Helper()
		c.clone.Write("fence.yaml", fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: fence}\nspec: {terminationGracePeriodSeconds: 1, containers: [{name: main, image: %s, env: [{name: AFTER, value: %q}]}]}\n", c.images[0], after))
		c.clone.Apply("after " + after)
		if now, _ := c.worked(out); now != began {
			t.Errorf("after %s %d pods more have begun", after, now-began)
		}
		if j := c.job("work"); j == nil || j.Job == nil || j.Job.Condition != "Complete" || j.Job.Succeeded != 12 {
			t.Errorf("after %s the Job is %+v", after, j)
		}
	}
	still("its end")
	c.quiet()
	c.loseRecord()
	c.Up()
	still("the loss of the record")
	c.quiet()
	c.Stop()
	c.deleteEnded()
	c.Up()
	still("the loss of its containers")
	c.reboot()
	c.Up()
	still("a reboot")
	c.quiet()
	c.loseRecord()
	c.deleteEnded()
	c.Up()
	still("the loss of containers and record")

	put(1)
	c.clone.Apply("again")
	c.completes("work", done.Job.Finished)
	if now, _ := c.worked(out); now < began+12 {
		t.Errorf("the next run began %d pods", now-began)
	}
}

// job is a Job as the server shows it; nil when it does not.
func (c *cluster) job(name string) *nodes.ObjectHealth {
	c.t.Helper()
	o, err := c.Overview()
	if err != nil {
		c.t.Fatal(err)
	}
	for i := range o.Objects {
		if h := &o.Objects[i]; h.Key.Kind == "Job" && h.Key.Name == name {
			return h
		}
	}
	return nil
}

// completes waits until a Job has completed, later than at some time.
func (c *cluster) completes(name string, after time.Time) *nodes.ObjectHealth {
	c.t.Helper()
	var j *nodes.ObjectHealth
	c.Eventually(2*time.Minute, "Job "+name+" completes", func() error {
		if j = c.job(name); j == nil || j.Job == nil || j.Job.Condition != "Complete" || !j.Job.Finished.After(after) {
			return fmt.Errorf("%+v", j)
		}
		return nil
	})
	return j
}

// worked counts the pods that began and ended their work, each of them once.
func (c *cluster) worked(out string) (began, ended int) {
	c.t.Helper()
	text, err := os.ReadFile(filepath.Join(out, "work"))
	if err != nil {
		c.t.Fatal(err)
	}
	seen := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		if seen[line] {
			c.t.Errorf("twice: %s", line)
		}
		seen[line] = true
		if strings.HasPrefix(line, "begins") {
			began++
		} else {
			ended++
		}
	}
	return began, ended
}

// deleteEnded deletes every container that does not run, behind the agent's back.
func (c *cluster) deleteEnded() {
	c.t.Helper()
	all, err := c.runtime.NamespaceService().List(context.Background())
	if err != nil {
		c.t.Fatal(err)
	}
	for _, namespace := range all {
		ctx := namespaces.WithNamespace(context.Background(), namespace)
		list, err := c.runtime.Containers(ctx)
		if err != nil {
			c.t.Fatal(err)
		}
		for _, container := range list {
			c.deleteUnlessRunning(ctx, container)
		}
	}
}

func (c *cluster) deleteUnlessRunning(ctx context.Context, container client.Container) {
	c.t.Helper()
	if task, err := container.Task(ctx, nil); err == nil {
		if status, err := task.Status(ctx); err == nil && status.Status == client.Running {
			return
		}
		if _, err := task.Delete(ctx, client.WithProcessKill); err != nil {
			c.t.Fatal(err)
		}
	}
	if err := container.Delete(ctx, client.WithSnapshotCleanup); err != nil {
		c.t.Fatal(err)
	}
}
