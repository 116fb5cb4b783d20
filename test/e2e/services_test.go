//go:build e2e

package e2e_test

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const serviceManifests = `
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}, {name: dns, protocol: UDP, port: 53, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: outside}
spec: {type: NodePort, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080, nodePort: 30123}, {name: udp, protocol: UDP, port: 80, targetPort: 8080, nodePort: 30123}]}
---
apiVersion: v1
kind: Service
metadata: {name: sticky}
spec: {sessionAffinity: ClientIP, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: pending}
spec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: family}
spec: {clusterIP: None, selector: {group: family}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: elsewhere}
spec: {type: ExternalName, externalName: web.default.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: shy}
spec: {selector: {app: shy}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: early}
spec: {publishNotReadyAddresses: true, selector: {app: shy}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: by-hand}
spec: {ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: by-hand-1, labels: {kubernetes.io/service-name: by-hand}}
addressType: IPv4
ports: [{port: 9090}]
endpoints: [{addresses: [NODE]}]
---
apiVersion: v1
kind: Pod
metadata: {name: ann, labels: {group: family}}
spec: {hostname: ann, subdomain: family, containers: [{name: main, image: IMAGE}]}
---
apiVersion: v1
kind: Pod
metadata: {name: bob, labels: {group: family}}
spec: {hostname: bob, subdomain: family, containers: [{name: main, image: IMAGE}]}
---
apiVersion: v1
kind: Pod
metadata: {name: shy, labels: {app: shy}}
spec: {containers: [{name: main, image: IMAGE, args: [serve, -ready=false], readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}}]}
---
apiVersion: v1
kind: Pod
metadata: {name: on-host}
spec: {hostNetwork: true, dnsPolicy: ClusterFirstWithHostNet, containers: [{name: main, image: IMAGE, args: [serve, -listen, ":9090"], readinessProbe: {tcpSocket: {port: 9090}, periodSeconds: 1}}]}
---
`

// TestServices looks at services from the machine and from a pod.
func TestServices(t *testing.T) {
	// A machine without a network still has an address that pods reach.
	if r := shell("ip link add out type veth peer name far && ip link set far up && ip addr add 192.0.2.10/24 dev out && ip link set out up"); r.Code != 0 {
		t.Fatal(r.Err)
	}
	t.Cleanup(func() { shell("ip link del out") })
	w := newWorld(t, "--node-ip", "192.0.2.10")
	w.clone.Write("services.yaml", strings.NewReplacer("IMAGE", insideImage, "NODE", "192.0.2.10").Replace(serviceManifests)+deployment("web", 3, ""))
	w.clone.Commit("services")
	if r := w.clone.Push("-o", "tally.wait=false"); r.Code != 0 {
		t.Fatal(r.Err)
	}
	w.Eventually(patience, "web is ready", func() error {
		if n := len(w.endpoints("web")); n != 3 {
			return fmt.Errorf("%d endpoints", n)
		}
		return nil
	})
	inside := w.ip("ann")

	t.Run("reach", func(t *testing.T) { reach(w.in(t), inside) })
	t.Run("affinity", func(t *testing.T) { affinity(w.in(t)) })
	t.Run("no endpoints", func(t *testing.T) { noEndpoints(w.in(t)) })
	t.Run("readiness", func(t *testing.T) { publish(w.in(t)) })
	t.Run("names", func(t *testing.T) { names(w.in(t), inside) })
}

func (w *world) endpoints(name string) []string { return w.service(name).Ports[0].Endpoints }

// reach asks until every pod of web has answered.
func reach(w *world, inside string) {
	ip := w.service("web").ClusterIPs[0]
	for _, at := range []string{ip + ":80", "127.0.0.1:30123", "192.0.2.10:30123", w.clusterIP("pending")} {
		answered := map[string]bool{}
		w.Eventually(patience, "three pods answer at "+at, func() error {
			who, err := get(at, "/")
			if err != nil {
				return err
			}
			if answered[who] = true; len(answered) < 3 {
				return fmt.Errorf("only %v", answered)
			}
			return nil
		})
	}
	for _, at := range []string{ip + ":53", "192.0.2.10:30123"} {
		if who := udp(w.t, at); !strings.HasPrefix(who, "web-") {
			w.t.Errorf("over UDP %q answered at %s", who, at)
		}
	}
	for _, url := range []string{"http://web/", "http://web.default/", "http://web.default.svc.cluster.local/", "http://elsewhere/", "http://by-hand/", "http://outside/", "http://192.0.2.10:30123/"} {
		if _, err := tryAsk[any](inside, "/fetch", "url", url); err != nil {
			w.t.Errorf("a pod asks %s: %v", url, err)
		}
	}
	// Hairpin: a pod reaches itself through its own service.
	for _, p := range w.endpoints("web")[:1] {
		host, _, _ := net.SplitHostPort(p)
		for range 6 {
			if _, err := tryAsk[any](host, "/fetch", "url", "http://web/"); err != nil {
				w.t.Errorf("a pod of web asks web: %v", err)
			}
		}
	}
	if s := w.service("pending"); s.External != "" && !strings.Contains(s.External, "pending") || s.Ports[0].NodePort == 0 {
		w.t.Errorf("a load balancer without a cloud: %+v", s)
	}
}

func affinity(w *world) {
	at := w.clusterIP("sticky")
	first, err := get(at, "/")
	if err != nil {
		w.t.Fatal(err)
	}
	for range 12 {
		if who, err := get(at, "/"); who != first {
			w.t.Errorf("%q answers after %q, %v", who, first, err)
		}
	}
}

func noEndpoints(w *world) {
	_, err := net.Dial("tcp", w.clusterIP("nobody"))
	if err == nil || !strings.Contains(err.Error(), "refused") {
		w.t.Errorf("a service without endpoints: %v, want refused", err)
	}
}

func publish(w *world) {
	if n := len(w.endpoints("shy")); n != 0 {
		w.t.Errorf("a pod that is not ready has %d endpoints", n)
	}
	if n := len(w.endpoints("early")); n != 1 {
		w.t.Errorf("publishNotReadyAddresses gives %d endpoints", n)
	}
	host, _, _ := net.SplitHostPort(w.endpoints("early")[0])
	for _, ready := range []string{"true", "false"} {
		if _, err := post(host, "/ready", "is", ready); err != nil {
			w.t.Fatal(err)
		}
		w.Eventually(patience, "the service follows readiness "+ready, func() error {
			if n := len(w.endpoints("shy")); (n == 1) != (ready == "true") {
				return fmt.Errorf("%d endpoints", n)
			}
			_, err := get(w.clusterIP("shy"), "/")
			if (err == nil) != (ready == "true") {
				return fmt.Errorf("asking it: %v", err)
			}
			return nil
		})
	}
}

func names(w *world, inside string) {
	ann, bob := w.ip("ann"), w.ip("bob")
	both := []string{ann, bob}
	slices.Sort(both)
	for _, c := range []struct {
		kind, name string
		want       []string
	}{
		{"a", "web", w.service("web").ClusterIPs},
		{"a", "web.default.svc.cluster.local.", w.service("web").ClusterIPs},
		{"a", "family", both},
		{"a", "ann.family", []string{ann}},
		{"a", "bob.family.default.svc.cluster.local.", []string{bob}},
		{"a", "elsewhere", w.service("web").ClusterIPs},
		{"a", strings.ReplaceAll(ann, ".", "-") + ".default.pod.cluster.local.", []string{ann}},
		{"ptr", bob, []string{"bob.family.default.svc.cluster.local."}},
		{"ptr", w.service("web").ClusterIPs[0], []string{"web.default.svc.cluster.local."}},
	} {
		got, err := tryAsk[[]string](inside, "/lookup", "type", c.kind, "name", c.name)
		slices.Sort(got)
		if diff := cmp.Diff(c.want, got); diff != "" {
			w.t.Errorf("%s %s: %v, want -, got +:\n%s", c.kind, c.name, err, diff)
		}
	}
	type srv struct {
		Target string
		Port   int
	}
	got := ask[[]srv](w, inside, "/lookup", "type", "srv", "name", "_http._tcp.family.default.svc.cluster.local.")
	slices.SortFunc(got, func(a, b srv) int { return strings.Compare(a.Target, b.Target) })
	want := []srv{{"ann.family.default.svc.cluster.local.", 8080}, {"bob.family.default.svc.cluster.local.", 8080}}
	if diff := cmp.Diff(want, got); diff != "" {
		w.t.Errorf("SRV of a headless service, want -, got +:\n%s", diff)
	}
	if name, err := tryAsk[string](inside, "/lookup", "type", "cname", "name", "elsewhere.default.svc.cluster.local."); err != nil || name != "web.default.svc.cluster.local." {
		w.t.Errorf("CNAME of an ExternalName: %q, %v", name, err)
	}
	if _, err := tryAsk[any](inside, "/lookup", "type", "a", "name", "nothing.default.svc.cluster.local."); err == nil || !strings.Contains(err.Error(), "no such host") {
		w.t.Errorf("a name that is not there: %v", err)
	}
	if got, err := tryAsk[[]string]("127.0.0.1:9090", "/lookup", "type", "a", "name", "web"); err != nil || len(got) != 1 {
		w.t.Errorf("on the host's network with ClusterFirstWithHostNet: %v, %v", got, err)
	}
}
