//go:build e2e

// Package chaos kills, damages and replaces parts of a running cluster and
// looks that what must go on goes on, and that the rest heals by itself.
package chaos

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/miekg/dns"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/test/machine"
)

var (
	seedFlag = flag.Int64("seed", 0, "seed of the random moments; 0 takes a new one, which is printed")
	moments  = flag.Int("moments", 24, "how many random moments something is killed at")
	away     = flag.Duration("away", 30*time.Second, "how long tally up stays stopped")
)

func TestMain(m *testing.M) {
	if machine.Outside() {
		if err := machine.FetchPackages(append(postgresPackages, machine.RedisPackages...)...); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	machine.Main(m)
}

// program is what the containers run.
const program = "github.com/tallyman-dev/tallyman/test/chaos/program"

const (
	// resolver is the keeper's DNS server: the first address of the first pod range.
	resolver = "10.244.0.1:53"
	// patience is how long the cluster may take for what it does by itself.
	patience = 30 * time.Second
)

// cluster is a machine that runs tally, with a working copy of its repository.
type cluster struct {
	*machine.Machine
	t       *testing.T
	clone   *machine.Clone
	runtime *client.Client
	images  []string
}

// newCluster starts a machine. Its two images differ by a variable.
func newCluster(t *testing.T, flags ...string) *cluster {
	t.Helper()
	c := &cluster{Machine: machine.New(t), t: t}
	c.images = []string{c.PushImage(program, "chaos:1", "VERSION=1"), c.PushImage(program, "chaos:2", "VERSION=2")}
	runtime, err := client.New(c.Containerd.Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { runtime.Close() })
	c.runtime = runtime
	c.Up(flags...)
	c.clone = c.Clone()
	return c
}

// deployment is what the tests vary of a Deployment and the Service before it.
type deployment struct {
	name     string
	replicas int
	image    string
	// change is any text: another one is another template.
	change string
	// more is indented by 8: further fields of the container.
	more string
	// pod is indented by 6: further fields of the pod.
	pod      string
	nodePort int
}

func (d deployment) yaml() string {
	kind := "ClusterIP"
	nodePort := ""
	if d.nodePort != 0 {
		kind, nodePort = "NodePort", fmt.Sprintf(", nodePort: %d", d.nodePort)
	}
	return fmt.Sprintf(`apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  replicas: %[2]d
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}, annotations: {change: %[4]q}}
    spec:
      terminationGracePeriodSeconds: 10
%[8]s
      containers:
      - name: main
        image: %[3]s
        ports: [{name: http, containerPort: 8080}]
        env:
        - {name: LINES_EVERY_MS, value: "2"}
        - {name: FILE, value: /config/motd}
        - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        readinessProbe: {httpGet: {path: /readyz, port: http}, periodSeconds: 1, failureThreshold: 1}
%[7]s
---
apiVersion: v1
kind: Service
metadata: {name: %[1]s}
spec:
  type: %[5]s
  selector: {app: %[1]s}
  ports: [{name: http, port: 80, targetPort: http%[6]s}]
`, d.name, d.replicas, d.image, d.change, kind, nodePort, d.more, d.pod)
}

// put writes the deployment's file; nothing is committed yet.
func (c *cluster) put(d deployment) {
	c.t.Helper()
	c.clone.Write(d.name+".yaml", d.yaml())
}

// process is one running container as the machine knows it. A container that
// restarted has another pid or another birth.
type process struct {
	ID   string
	PID  uint32
	Born string // in clock ticks since boot
}

// running lists the running containers by containerd's own record.
func (c *cluster) running() (map[string]process, error) {
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), "tallyman"), 10*time.Second)
	defer cancel()
	tasks, err := c.runtime.TaskService().List(ctx, &tasksapi.ListTasksRequest{})
	if err != nil {
		return nil, err
	}
	found := map[string]process{}
	for _, task := range tasks.Tasks {
		if task.Status != tasktypes.Status_RUNNING {
			continue
		}
		born, err := birth(task.Pid)
		if err != nil {
			continue // it ended meanwhile
		}
		found[task.ID] = process{task.ID, task.Pid, born}
	}
	return found, nil
}

// birth is when a process started: the 22nd field of its stat.
func birth(pid uint32) (string, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return strings.Fields(rest)[19], nil
}

// mustRunning is running, waiting for containerd if need be.
func (c *cluster) mustRunning() map[string]process {
	c.t.Helper()
	var found map[string]process
	c.Eventually(patience, "containerd lists what runs", func() (err error) {
		found, err = c.running()
		return err
	})
	return found
}

// pods are the pods of a deployment that are not stopping.
func (c *cluster) pods(name string) []nodes.ObjectHealth {
	c.t.Helper()
	var found []nodes.ObjectHealth
	c.Eventually(patience, "the server answers", func() error {
		o, err := c.Overview()
		if err != nil {
			return err
		}
		found = slices.DeleteFunc(machine.Pods(o, "default", name+"-"), func(p nodes.ObjectHealth) bool { return p.Pod.Stopping })
		return nil
	})
	slices.SortFunc(found, func(a, b nodes.ObjectHealth) int { return cmp.Compare(a.Key.Name, b.Key.Name) })
	return found
}

// processes are the running containers of pods.
func (c *cluster) processes(pods []nodes.ObjectHealth) map[string]process {
	c.t.Helper()
	all := c.mustRunning()
	maps.DeleteFunc(all, func(id string, _ process) bool {
		return !slices.ContainsFunc(pods, func(p nodes.ObjectHealth) bool { return strings.HasPrefix(id, string(p.Pod.UID)+"_") })
	})
	return all
}

// checkUnmoved holds that the processes of before still run: none restarted,
// none ended.
func (c *cluster) checkUnmoved(before map[string]process, after string) {
	c.t.Helper()
	if len(before) == 0 {
		c.t.Fatalf("%s: nothing ran before: the test looks at nothing", after)
	}
	now := c.mustRunning()
	for id, p := range before {
		if now[id] != p {
			c.t.Errorf("%s: container %s was %+v, is %+v: it restarted", after, id, p, now[id])
		}
	}
}

// checkSingle holds that no container runs twice.
func (c *cluster) checkSingle(after string) {
	c.t.Helper()
	runs := map[string][]string{}
	for id := range c.mustRunning() {
		name := id[:strings.LastIndexByte(id, '_')]
		runs[name] = append(runs[name], id)
	}
	for name, ids := range runs {
		if len(ids) > 1 {
			c.t.Errorf("%s: %s runs %d times: %v", after, name, len(ids), ids)
		}
	}
}

// serviceOf looks a service up.
func (c *cluster) serviceOf(name string) nodes.ServiceOverview {
	c.t.Helper()
	o, err := c.Overview()
	if err != nil {
		c.t.Fatal(err)
	}
	for _, s := range o.Services {
		if s.Key.Name == name {
			return s
		}
	}
	c.t.Fatalf("no service %s in %v", name, o.Services)
	return nodes.ServiceOverview{}
}

// address is where a service answers.
func (c *cluster) address(name string) string {
	c.t.Helper()
	return net.JoinHostPort(c.serviceOf(name).ClusterIPs[0], "80")
}

// get asks over a connection of its own.
func get(address, path string) (string, error) {
	return ask(http.MethodGet, address, path)
}

func ask(method, address, path string) (string, error) {
	one := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	request, err := http.NewRequest(method, "http://"+address+path, nil)
	if err != nil {
		return "", err
	}
	answer, err := one.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s%s: %s: %s", method, address, path, answer.Status, body)
	}
	return string(body), err
}

// resolves asks the keeper's DNS.
func resolves(name, want string) error {
	question := new(dns.Msg)
	question.SetQuestion(name+".default.svc.cluster.local.", dns.TypeA)
	answer, err := dns.Exchange(question, resolver)
	if err != nil {
		return err
	}
	for _, record := range answer.Answer {
		if a, ok := record.(*dns.A); ok && a.A.String() == want {
			return nil
		}
	}
	return fmt.Errorf("%s resolves to %v, want %s", name, answer.Answer, want)
}

// written is how many lines the pod at the address wrote, by its own count.
func written(ip string) (int, error) {
	text, err := get(net.JoinHostPort(ip, "8080"), "/lines")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(text)
}

// checkWrites holds that a pod's program is not blocked on its output.
func (c *cluster) checkWrites(p nodes.ObjectHealth, when string) {
	c.t.Helper()
	before, err := written(p.Pod.IP)
	if err != nil {
		c.t.Fatalf("%s: %v", when, err)
	}
	c.Eventually(patience, when+": "+p.Key.Name+" goes on writing", func() error {
		if now, err := written(p.Pod.IP); err != nil || now <= before+10 {
			return fmt.Errorf("line %d, before %d (%v)", now, before, err)
		}
		return nil
	})
}

// checkLines holds that a pod's log has every line that it wrote so far, in
// order. A line may be there twice where a keeper was killed.
func (c *cluster) checkLines(p nodes.ObjectHealth, keeperKilled bool) {
	c.t.Helper()
	wrote, err := written(p.Pod.IP)
	if err != nil {
		c.t.Fatal(err)
	}
	c.Eventually(patience, "the log of "+p.Key.Name+" has every line", func() error {
		r := c.Tally("logs", "-n", "default", p.Key.Name)
		if r.Code != 0 {
			return fmt.Errorf("tally logs: %s", r.Err)
		}
		last := 0
		for line := range strings.Lines(r.Out) {
			var n int
			if _, err := fmt.Sscanf(line, "line %d ", &n); err != nil || !strings.HasSuffix(line, ".\n") {
				return fmt.Errorf("after line %d: %q", last, line)
			}
			if n != last+1 && !(keeperKilled && n <= last) {
				c.t.Fatalf("log of %s: line %d follows line %d", p.Key.Name, n, last)
			}
			last = max(last, n)
		}
		if last < wrote {
			return fmt.Errorf("has %d lines, written were %d", last, wrote)
		}
		return nil
	})
}

// keeperPID finds the keeper of this machine.
func (c *cluster) keeperPID() (int, error) {
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0, err
	}
	for _, path := range lines {
		content, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		args := strings.Split(string(content), "\x00")
		if len(args) > 1 && args[1] == "keeper" && slices.Contains(args, c.RunDir) {
			return strconv.Atoi(filepath.Base(filepath.Dir(path)))
		}
	}
	return 0, fmt.Errorf("no keeper runs")
}

// replicaSets are the names of all ReplicaSets, those of the past included.
func (c *cluster) replicaSets() []string {
	c.t.Helper()
	o, err := c.Overview()
	if err != nil {
		c.t.Fatal(err)
	}
	var names []string
	for _, object := range o.Objects {
		if object.Key.Kind == "ReplicaSet" {
			names = append(names, object.Key.Name)
		}
	}
	slices.Sort(names)
	return names
}

// converged waits until the cluster says so, whatever the revision.
func (c *cluster) converged(why string) {
	c.t.Helper()
	c.Eventually(time.Minute, why+": converged", func() error {
		o, err := c.Overview()
		if err != nil {
			return err
		}
		if !o.Plan.Converged {
			return fmt.Errorf("waiting for %v", o.Plan.Waiting)
		}
		return nil
	})
}
