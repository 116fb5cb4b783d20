//go:build e2e

package cluster_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/status/client"
	"github.com/tallyman-dev/tallyman/test/machine/cluster"
)

// networkManifests are pods called one and two, on the nodes of that number,
// and services of each policy. Nodes 1 and 3 are in one zone, 2 in another.
const networkManifests = `
apiVersion: v1
kind: Pod
metadata: {name: one, labels: {app: numbers}}
spec: {hostname: one, subdomain: numbers, nodeSelector: {kubernetes.io/hostname: node1}, containers: [{name: main, image: IMAGE, args: [serve, -ready=true]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: two, labels: {app: numbers}}
spec: {hostname: two, subdomain: numbers, nodeSelector: {kubernetes.io/hostname: node2}, containers: [{name: main, image: IMAGE, args: [serve, -ready=true]}]}
---
apiVersion: v1
kind: Service
metadata: {name: numbers}
spec: {clusterIP: None, selector: {app: numbers}, ports: [{port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: outer}
spec: {type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 31999, selector: {app: numbers}, ports: [{port: 80, targetPort: 8080, nodePort: 30090}]}
---
apiVersion: v1
kind: Service
metadata: {name: anywhere}
spec: {type: NodePort, selector: {app: numbers}, ports: [{port: 80, targetPort: 8080, nodePort: 30091}]}
---
apiVersion: v1
kind: Service
metadata: {name: inner}
spec: {internalTrafficPolicy: Local, selector: {app: numbers}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: near}
spec: {trafficDistribution: PreferSameZone, selector: {app: numbers}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: sticky}
spec: {sessionAffinity: ClientIP, selector: {app: numbers}, ports: [{port: 80, targetPort: 8080}]}
---
`

// TestNetwork looks how pods and services of several nodes are reached from
// pods, from nodes and from outside, over each overlay.
func TestNetwork(t *testing.T) {
	w := newWorld(t)
	for i, zone := range []string{"a", "b", "a"} {
		w.join(fmt.Sprintf("node%d", i+1), "--zone", zone)
	}
	w.awaitReady()
	w.clone.Write("web.yaml", web(3, "network"))
	w.clone.Write("network.yaml", strings.ReplaceAll(networkManifests, "IMAGE", insideImage))
	w.clone.Apply("services of each policy")
	w.awaitPods("asker", 3)
	w.awaitPods("one", 1)
	w.awaitPods("two", 1)
	w.policies()
	w.headless()
	w.sources()
	w.healthChecks()
	w.overlays()
	w.encrypted()
}

// answers asks twelve times from a pod of a node and gives who answered, each
// once, in no order but that of their names; "none" when nobody did.
func (w *world) answers(on *cluster.Machine, url string) string {
	seen := map[string]bool{}
	for range 12 {
		who, err := w.fetch(on, url)
		if err != nil {
			return "none"
		}
		seen[who] = true
	}
	switch {
	case seen["one"] && seen["two"] && len(seen) == 2:
		return "both"
	case seen["one"] && len(seen) == 1:
		return "one"
	case seen["two"] && len(seen) == 1:
		return "two"
	}
	return fmt.Sprint(seen)
}

// fetch has the asker of a node ask.
func (w *world) fetch(on *cluster.Machine, target string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DialContext: on.Dial, DisableKeepAlives: true}}
	text, err := body(ctx, client, "http://"+w.askerOn(on)+":8080/fetch?"+url.Values{"url": {target}}.Encode())
	if err != nil {
		return "", err
	}
	var answer struct {
		Status int
		Body   string
	}
	if err := json.Unmarshal([]byte(text), &answer); err != nil {
		return "", err
	}
	if answer.Status != http.StatusOK {
		return "", fmt.Errorf("%d: %s", answer.Status, answer.Body)
	}
	return answer.Body, nil
}

// body asks over HTTP; an answer other than 200 is an error with its body.
func body(ctx context.Context, client *http.Client, url string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	answer, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", answer.Status, content)
	}
	return string(content), err
}

// outside asks a node from a machine that is none.
func outside(m *cluster.Machine, path string) (string, error) {
	client := &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	return body(context.Background(), client, "http://"+m.Address+path)
}

func (w *world) policies() {
	for _, c := range []struct{ service, from1, from2, from3 string }{
		{"anywhere", "both", "both", "both"},
		{"inner", "one", "two", "none"},
		{"near", "one", "two", "one"},
		{"outer", "both", "both", "both"},
	} {
		for i, want := range []string{c.from1, c.from2, c.from3} {
			w.Eventually(patience, fmt.Sprintf("%s from node%d is answered by %s", c.service, i+1, want), func() error {
				if got := w.answers(w.nodes[i], "http://"+c.service+"/"); got != want {
					return errors.New(got)
				}
				return nil
			})
		}
	}
	for _, m := range w.nodes {
		first, err := w.fetch(m, "http://sticky/")
		if err != nil {
			w.t.Error(err)
		}
		if got := w.answers(m, "http://sticky/"); got != first {
			w.t.Errorf("%s: with affinity %s answers after %s", m.Name, got, first)
		}
	}
}

// headless has every node's name server know pods of all nodes.
func (w *world) headless() {
	for _, m := range w.nodes {
		for _, name := range []string{"one", "two"} {
			if who, err := w.fetch(m, "http://"+name+".numbers.default.svc.cluster.local:8080/"); err != nil || who != name {
				w.t.Errorf("%s: %s is %q, %v", m.Name, name, who, err)
			}
		}
	}
}

// sources looks which addresses servers see.
func (w *world) sources() {
	see := func(from, what, got string, err error, want string) {
		w.t.Helper()
		if host, _, _ := strings.Cut(got, ":"); err != nil || host != want {
			w.t.Errorf("%s from %s: the server saw %q (%v), want %s", what, from, got, err, want)
		}
	}
	for _, m := range w.nodes {
		asker := w.askerOn(m)
		for _, target := range []string{"one.numbers:8080", "two.numbers:8080", "anywhere"} {
			got, err := w.fetch(m, "http://"+target+"/remote")
			see(m.Name, "pod to "+target, got, err, asker)
		}
		ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
		client := &http.Client{Transport: &http.Transport{DialContext: m.Dial, DisableKeepAlives: true}}
		got, err := body(ctx, client, "http://"+w.service("anywhere")+"/remote")
		cancel()
		gateway := asker[:strings.LastIndexByte(asker, '.')] + ".1"
		see(m.Name, "node to anywhere", got, err, gateway)
	}
	const test = "192.168.77.1"
	got, err := outside(w.nodes[0], ":30090/remote")
	see("outside", "policy Local", got, err, test)
	if got, err := outside(w.nodes[2], ":30090/remote"); err == nil {
		w.t.Errorf("node3 has no pod of its own and policy Local, and was answered by %s", got)
	}
	if _, err := outside(w.nodes[2], ":30091/"); err != nil {
		w.t.Errorf("node port of node3, which leads to other nodes: %v", err)
	}
}

func (w *world) healthChecks() {
	for i, want := range []string{"200", "200", "503"} {
		w.Eventually(patience, fmt.Sprintf("node%d answers load balancers %s", i+1, want), func() error {
			text, err := outside(w.nodes[i], ":31999/")
			switch {
			case want == "200" && err == nil && strings.Contains(text, `"localEndpoints":1`):
				return nil
			case want == "503" && err != nil && strings.Contains(err.Error(), "503") && strings.Contains(err.Error(), `"localEndpoints":0`):
				return nil
			}
			return fmt.Errorf("%q, %v", text, err)
		})
	}
}

// largestPacket has pod one send pod two, on another node, packets that must
// not be taken apart: the largest passes whole, and one byte more does not fit
// into the pod's link.
func (w *world) largestPacket(mtu int) error {
	sender := w.nodes[0].Processes("-ready=true")
	if len(sender) != 1 {
		return fmt.Errorf("processes of pod one: %v", sender)
	}
	to := w.pods("two")[0].Pod.Status.IP + ":8080"
	var failure error
	if err := cluster.InNetworkOf(sender[0], func() {
		failure = errors.Join(passes(to, mtu), fitsNot(to, mtu+1))
	}); err != nil {
		return err
	}
	return failure
}

// headers of IPv4 and UDP, in bytes.
const headers = 20 + 8

func passes(to string, size int) error {
	socket, err := whole(to)
	if err != nil {
		return err
	}
	defer socket.Close()
	if _, err := socket.Write(make([]byte, size-headers)); err != nil {
		return fmt.Errorf("a packet of %d bytes: %w", size, err)
	}
	answer := make([]byte, 100)
	n, err := socket.Read(answer)
	if err != nil || string(answer[:n]) != "two" {
		return fmt.Errorf("a packet of %d bytes was answered %q, %w", size, answer[:n], err)
	}
	return nil
}

func fitsNot(to string, size int) error {
	socket, err := whole(to)
	if err != nil {
		return err
	}
	defer socket.Close()
	if _, err := socket.Write(make([]byte, size-headers)); !errors.Is(err, unix.EMSGSIZE) {
		return fmt.Errorf("a packet of %d bytes fits: %v", size, err)
	}
	return nil
}

// whole is a socket whose packets nobody may take apart.
func whole(to string) (net.Conn, error) {
	socket, err := net.Dial("udp", to)
	if err != nil {
		return nil, err
	}
	raw, err := socket.(*net.UDPConn).SyscallConn()
	if err != nil {
		return nil, err
	}
	var failure error
	err = raw.Control(func(fd uintptr) {
		failure = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
	})
	return socket, errors.Join(err, failure, socket.SetDeadline(time.Now().Add(askTimeout)))
}

// overlaid is a Cluster object with an overlay.
func overlaid(overlay string) string {
	return "apiVersion: tallyman.dev/v1alpha1\nkind: Cluster\nmetadata: {name: all}\nspec: {network: {overlay: " + overlay + "}}\n"
}

// overlays changes how packets travel, there and back, and no container notices.
func (w *world) overlays() {
	before := w.processes()
	for _, overlay := range []string{"routes", "vxlan"} {
		w.clone.Write("cluster.yaml", overlaid(overlay))
		w.clone.Apply("overlay " + overlay)
		w.Eventually(patience, "all nodes use overlay "+overlay, func() error {
			for _, m := range w.nodes {
				if has := m.Run("ip", "link", "show", "tally0-vx").Code == 0; has != (overlay == "vxlan") {
					return fmt.Errorf("%s: VXLAN link %v", m.Name, has)
				}
				if got := w.answers(m, "http://anywhere/"); got != "both" {
					return fmt.Errorf("%s: %s", m.Name, got)
				}
			}
			return w.largestPacket(map[string]int{"routes": 1500, "vxlan": 1450}[overlay])
		})
	}
	w.same(before)
}

// encrypted asks for WireGuard. Where the kernel has none, every node says so
// and takes no pods until it is asked for something else.
func (w *world) encrypted() {
	w.clone.Write("cluster.yaml", overlaid("wireguard"))
	w.clone.Commit("overlay wireguard")
	if r := w.clone.Push("-o", "tally.wait=false"); r.Code != 0 {
		w.t.Fatalf("push: %+v", r)
	}
	if w.nodes[0].Run("sh", "-c", "ip link add probe type wireguard && ip link del probe").Code == 0 {
		w.Eventually(patience, "all nodes reach each other through WireGuard", w.throughWireGuard)
	} else {
		w.Eventually(patience, "every node says that its kernel cannot", func() error {
			var errs []error
			for _, m := range w.nodes {
				errs = append(errs, w.cutOff(m))
			}
			return errors.Join(errs...)
		})
	}
	w.clone.Write("cluster.yaml", overlaid("vxlan"))
	w.clone.Apply("overlay vxlan again")
	for _, m := range w.nodes {
		w.Eventually(patience, m.Name+" reaches the others again", func() error {
			if got := w.answers(m, "http://anywhere/"); got != "both" {
				return errors.New(got)
			}
			if w.cutOff(m) == nil {
				return errors.New("still tainted")
			}
			return nil
		})
	}
}

func (w *world) throughWireGuard() error {
	for _, m := range w.nodes {
		if r := m.Run("ip", "link", "show", "tally0-wg"); r.Code != 0 {
			return errors.New(r.Err)
		}
		if got := w.answers(m, "http://anywhere/"); got != "both" {
			return errors.New(got)
		}
	}
	return nil
}

// cutOff looks for the taint and the event of a node that reaches no other.
func (w *world) cutOff(m *cluster.Machine) error {
	o, err := w.server.Overview()
	if err != nil {
		return err
	}
	n := node(o, m.Name)
	if n == nil || !slices.ContainsFunc(n.Taints, func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeNetworkUnavailable }) {
		return fmt.Errorf("%s has no taint", m.Name)
	}
	c, err := client.New(client.Options{Socket: w.server.File("/run/tallyman/tally.sock")})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	events, err := c.Events(ctx, desired.Key{Kind: "Node", Name: m.Name})
	if err != nil {
		return err
	}
	says := func(e nodes.Event) bool {
		return e.Reason == "NetworkUnavailable" && strings.Contains(e.Message, "this kernel has no WireGuard")
	}
	if !slices.ContainsFunc(events, says) {
		return fmt.Errorf("%s: events %+v", m.Name, events)
	}
	return nil
}
