//go:build e2e

package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/status/client"
	"github.com/tallyman-dev/tallyman/test/machine"
)

// patience is how long anything may take before it counts as broken.
const patience = 2 * time.Minute

// app is the example program: a web server with a health page.
const app = "github.com/tallyman-dev/tallyman/examples-repo/app"

// watch looks at the server from beside, as the status page does.
type watch struct {
	t      *testing.T
	client *client.Client
}

func newWatch(t *testing.T, m *machine.Machine) *watch {
	t.Helper()
	return watchSocket(t, filepath.Join(m.RunDir, "tally.sock"))
}

// watchSocket looks at the server behind a socket.
func watchSocket(t *testing.T, socket string) *watch {
	t.Helper()
	c, err := client.New(client.Options{Socket: socket})
	if err != nil {
		t.Fatal(err)
	}
	return &watch{t: t, client: c}
}

// until returns the instant at which the server first showed what is looked
// for, or the error that ended the wait.
func (w *watch) until(what string, found func(*nodes.Overview) bool) func() time.Time {
	type outcome struct {
		at  time.Time
		err error
	}
	seen := errors.New("seen")
	done := make(chan outcome, 1)
	watching := make(chan struct{})
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		begun := false
		err := w.client.Watch(ctx, func(o *nodes.Overview) error {
			if !begun {
				begun = true
				close(watching)
			}
			if found(o) {
				return seen
			}
			return nil
		})
		if !begun {
			close(watching)
		}
		if errors.Is(err, seen) {
			err = nil
		}
		done <- outcome{time.Now(), err}
	}()
	<-watching
	return func() time.Time {
		w.t.Helper()
		o := <-done
		if o.err != nil {
			w.t.Fatalf("%s: %v", what, o.err)
		}
		return o.at
	}
}

// allReady tells whether a Deployment runs exactly n pods of the template that
// a commit brought, all available, and none besides.
func allReady(name string, n int, generation string) func(*nodes.Overview) bool {
	return func(o *nodes.Overview) bool {
		if o.InForce == nil || strings.TrimSpace(o.InForce.Message) != generation {
			return false
		}
		for _, object := range o.Objects {
			if object.Key.Kind == "Deployment" && object.Key.Name == name {
				return object.Wanted == n && object.Updated == n && object.Ready == n && object.Available == n && object.Current == n
			}
		}
		return false
	}
}

// push commits what was written under a message and pushes it; it must be
// accepted and converge.
func push(t *testing.T, c *machine.Clone, message string) (begun, ended time.Time) {
	t.Helper()
	c.Commit(message)
	begun = time.Now()
	r := c.Push("--quiet")
	ended = time.Now()
	if r.Code != 0 || !strings.Contains(r.Err, "converged in") {
		t.Fatalf("push of %q: exit code %d: %s", message, r.Code, r.Err)
	}
	return begun, ended
}

// serviceAddr is the cluster address and first port of a service.
func serviceAddr(t *testing.T, m *machine.Machine, name string) string {
	t.Helper()
	o, err := m.Overview()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range o.Services {
		if s.Key.Name == name && len(s.ClusterIPs) > 0 && len(s.Ports) > 0 {
			return net.JoinHostPort(s.ClusterIPs[0], strconv.Itoa(int(s.Ports[0].Port)))
		}
	}
	t.Fatalf("no service %s in the overview", name)
	return ""
}

// onePod is the only pod that is not stopping of a Deployment.
func onePod(t *testing.T, m *machine.Machine, name string) *nodes.PodOverview {
	t.Helper()
	o, err := m.Overview()
	if err != nil {
		t.Fatal(err)
	}
	var found []*nodes.PodOverview
	for _, p := range machine.Pods(o, "default", name+"-") {
		if !p.Pod.Stopping {
			found = append(found, p.Pod)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d pods of %s, want one", len(found), name)
	}
	return found[0]
}

// serving returns the instant at which an address first answers a request on a
// new connection.
func serving(t *testing.T, addr string) time.Time {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := ask(addr)
		if err == nil {
			return time.Now()
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not answer: %v", addr, err)
		}
		time.Sleep(time.Millisecond)
	}
}

// ask makes one request on a connection of its own.
func ask(addr string) error {
	conn, err := net.DialTimeout("tcp", addr, 100*time.Millisecond)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, "GET /healthz HTTP/1.0\r\n\r\n"); err != nil {
		return err
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(string(answer), "HTTP/1.0 "+strconv.Itoa(http.StatusOK)) {
		return fmt.Errorf("answer %q", answer)
	}
	return nil
}

// processorTime is what a process and the children that it waited for used.
func processorTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(content[strings.LastIndexByte(string(content), ')')+1:]))
	ticks := 0
	for _, field := range fields[11:15] { // utime, stime, cutime, cstime
		n, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond // USER_HZ is 100
}

// deployment writes a Deployment of the example program, with its health page
// as readiness probe, and a Service before it.
func deployment(c *machine.Clone, name, image string, replicas int, strategy, generation string) {
	c.Write(name+".yaml", fmt.Sprintf(`apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  replicas: %[3]d
  selector: {matchLabels: {app: %[1]s}}
  strategy: {rollingUpdate: %[4]s}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      containers:
        - name: app
          image: %[2]s
          env: [{name: GREETING, value: %[5]q}]
          ports: [{name: http, containerPort: 8080}]
          readinessProbe: {httpGet: {path: /healthz, port: http}, periodSeconds: 2}
---
apiVersion: v1
kind: Service
metadata: {name: %[1]s}
spec:
  selector: {app: %[1]s}
  ports: [{port: 80, targetPort: http}]
`, name, image, replicas, strategy, generation))
}
