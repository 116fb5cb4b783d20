//go:build e2e

package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/test/machine"
)

func TestMain(m *testing.M) {
	if machine.Outside() {
		if err := machine.FetchPackages(append(nginxPackages, machine.RedisPackages...)...); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	machine.Main(m)
}

// inside is the program that looks at a container from within.
const inside = "github.com/tallyman-dev/tallyman/test/e2e/inside"

// insideImage is where the registry of a world has it.
const insideImage = machine.RegistryAddress + "/inside:1"

const patience = 30 * time.Second

// world is a machine with a working copy of its repository.
type world struct {
	*machine.Machine
	clone *machine.Clone
	t     testing.TB
}

// newWorld starts tally up with the program inside in the registry.
func newWorld(t testing.TB, flags ...string) *world {
	t.Helper()
	m := machine.New(t)
	m.PushImage(inside, "inside:1")
	m.Up(flags...)
	return &world{Machine: m, clone: m.Clone(), t: t}
}

// in gives the world to a subtest.
func (w *world) in(t testing.TB) *world {
	return &world{Machine: w.For(t), clone: w.clone.For(t), t: t}
}

// overview is what the server shows now.
func (w *world) overview() *nodes.Overview {
	w.t.Helper()
	o, err := w.Overview()
	if err != nil {
		w.t.Fatal(err)
	}
	return o
}

// pod waits until the one living pod with the name's prefix fits.
func (w *world) pod(prefix string, fits func(nodes.PodStatus) error) *nodes.PodOverview {
	w.t.Helper()
	var found *nodes.PodOverview
	w.Eventually(patience, "pod "+prefix, func() error {
		o, err := w.Overview()
		if err != nil {
			return err
		}
		pods := slices.DeleteFunc(machine.Pods(o, "default", prefix), func(h nodes.ObjectHealth) bool { return h.Pod.Stopping })
		if len(pods) != 1 {
			return fmt.Errorf("%d pods", len(pods))
		}
		found = pods[0].Pod
		return fits(found.Status)
	})
	return found
}

func ready(s nodes.PodStatus) error {
	if !s.Ready {
		return fmt.Errorf("not ready: %s %s", s.Reason, s.Message)
	}
	return nil
}

// ip of the one ready pod with the name's prefix. A pod without a readiness
// probe is ready as soon as it runs, so it waits until the port is open.
func (w *world) ip(prefix string) string {
	w.t.Helper()
	ip := w.pod(prefix, ready).Status.IP
	w.Eventually(patience, "pod "+prefix+" listens", func() error {
		connection, err := net.DialTimeout("tcp", net.JoinHostPort(ip, "8080"), time.Second)
		if err != nil {
			return err
		}
		return connection.Close()
	})
	return ip
}

// ask gets a JSON value from the program inside at an address of a pod; query
// holds names and values in turn.
func ask[T any](w *world, address, path string, query ...string) T {
	w.t.Helper()
	value, err := tryAsk[T](address, path, query...)
	if err != nil {
		w.t.Fatalf("%s %v: %v", path, query, err)
	}
	return value
}

func tryAsk[T any](address, path string, query ...string) (value T, err error) {
	text, err := get(address, path, query...)
	if err != nil {
		return value, err
	}
	return value, json.Unmarshal([]byte(text), &value)
}

func address(address, path string, query []string) string {
	values := url.Values{}
	for pair := range slices.Chunk(query, 2) {
		values.Set(pair[0], pair[1])
	}
	if !strings.Contains(address, ":") {
		address += ":8080"
	}
	return "http://" + address + path + "?" + values.Encode()
}

// fresh connects anew for each request, as different clients would.
var fresh = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// get returns the body of a good answer.
func get(host, path string, query ...string) (string, error) {
	response, err := fresh.Get(address(host, path, query))
	return body(response, err)
}

func post(host, path string, query ...string) (string, error) {
	response, err := fresh.Post(address(host, path, query), "", nil)
	return body(response, err)
}

func body(response *http.Response, err error) (string, error) {
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = errors.New(response.Status + ": " + strings.TrimSpace(string(text)))
	}
	return string(text), err
}

// contains fails the test unless text holds every part.
func contains(t testing.TB, what, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%s lacks %q:\n%s", what, part, text)
		}
	}
}

// deployment is a manifest of pods that run the program inside.
func deployment(name string, replicas int, more string) string {
	return fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: %s}
spec:
  replicas: %d
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      containers:
        - name: main
          image: %[3]s
          readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}
%s
`, name, replicas, insideImage, indent(more, 10))
}

// service is a manifest of a service for a deployment.
func service(name, more string) string {
	return fmt.Sprintf("\n---\napiVersion: v1\nkind: Service\nmetadata: {name: %s}\nspec:\n  selector: {app: %[1]s}\n  ports: [{name: http, port: 80, targetPort: 8080}]\n%s\n", name, indent(more, 2))
}

// pod is a manifest of a bare pod.
func pod(name, spec string) string {
	return fmt.Sprintf("\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: %s, labels: {app: %[1]s}}\nspec:\n%s\n", name, indent(spec, 2))
}

func indent(text string, by int) string {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	for i, line := range lines {
		if line != "" {
			lines[i] = strings.Repeat(" ", by) + line
		}
	}
	return strings.Join(lines, "\n")
}
