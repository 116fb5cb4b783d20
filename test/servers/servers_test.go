//go:build e2e

// Package servers_test runs three servers on three machines, with an etcd of
// three members and a node on each, and breaks them in turn: somebody takes
// over, no container notices, and what Git says still happens.
package servers_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/test/etcdtest"
	"github.com/tallyman-dev/tallyman/test/machine"
	"github.com/tallyman-dev/tallyman/test/machine/cluster"
)

func TestMain(m *testing.M) { cluster.Main(m) }

// patience is how long anything may take before it counts as broken.
const patience = 2 * time.Minute

const image = cluster.RegistryAddress + "/inside:1"

// nodePort leads to the pods from every machine.
const nodePort = 30080

// world is a cluster of servers.
type world struct {
	*cluster.Cluster
	t        *testing.T
	machines []*server
	// remote is the repository that all follow, clone a working copy of it.
	remote string
	clone  *machine.Clone
	newest string // commit
	// certificates are etcd's and its clients'.
	certificates *etcdtest.Certificates
	// password is the file with that of the servers' user.
	password string
}

// server is a machine with a member of etcd, a server and a node.
type server struct {
	*cluster.Machine
	etcd, server *cluster.Process
	// line makes it a node.
	line []string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{Cluster: cluster.New(t), t: t, remote: filepath.Join(t.TempDir(), "remote.git")}
	w.PushImage("github.com/tallyman-dev/tallyman/test/e2e/inside", "inside:1")
	for _, name := range []string{"a", "b", "c"} {
		w.machines = append(w.machines, &server{Machine: w.Machine(name)})
	}
	w.startEtcd()
	w.git("init", "--quiet", "--bare", "--initial-branch", "main", w.remote)
	w.clone = machine.NewClone(t, w.machines[0].Machine, w.remote, "")
	w.commit(3, "first")
	return w
}

func (w *world) git(args ...string) {
	w.t.Helper()
	if r := w.machines[0].Run("git", args...); r.Code != 0 {
		w.t.Fatalf("git %v: %+v", args, r)
	}
}

// commit says how many pods there are.
func (w *world) commit(replicas int, message string) {
	w.t.Helper()
	w.clone.Write("web.yaml", fmt.Sprintf(`apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: %d
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: main, image: %s, readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080, nodePort: %d}]
`, replicas, image, nodePort))
	w.newest = w.clone.Commit(message)
	if r := w.clone.Push(); r.Code != 0 {
		w.t.Fatalf("push: %+v", r)
	}
}

// startEtcd starts the members, which speak TLS alone, and gives the servers a
// user who may do nothing outside of their prefix.
func (w *world) startEtcd() {
	w.t.Helper()
	var addresses, endpoints []string
	for _, m := range w.machines {
		addresses, endpoints = append(addresses, m.Address), append(endpoints, "https://"+m.Address+":2379")
	}
	w.password = filepath.Join(w.t.TempDir(), "password")
	if err := os.WriteFile(w.password, []byte(etcdtest.Password+"\n"), 0o600); err != nil {
		w.t.Fatal(err)
	}
	w.certificates = etcdtest.NewCertificates(w.t, addresses...)
	for _, m := range w.machines {
		m.startEtcd(w)
	}
	admin, err := clientv3.New(clientv3.Config{Endpoints: endpoints, TLS: w.certificates.Config(), DialTimeout: patience, Logger: zap.NewNop()})
	if err != nil {
		w.t.Fatal(err)
	}
	defer admin.Close()
	w.Eventually(patience, "etcd answers", func() error {
		ctx, cancel := context.WithTimeout(w.t.Context(), time.Second)
		defer cancel()
		_, err := admin.Get(ctx, "ready")
		return err
	})
	etcdtest.Confine(w.t, admin, "cluster")
}

func (m *server) startEtcd(w *world) {
	w.t.Helper()
	var members []string
	for _, other := range w.machines {
		members = append(members, fmt.Sprintf("%s=https://%s:2380", other.Name, other.Address))
	}
	m.etcd = m.Start("etcd", append(w.certificates.Flags(), "--name", m.Name, "--data-dir", "/var/lib/etcd",
		"--listen-client-urls", "https://"+m.Address+":2379", "--advertise-client-urls", "https://"+m.Address+":2379",
		"--listen-peer-urls", "https://"+m.Address+":2380", "--initial-advertise-peer-urls", "https://"+m.Address+":2380",
		"--initial-cluster", strings.Join(members, ","), "--logger", "zap", "--log-level", "error")...)
}

// list is what is said of each machine, with commas.
func (w *world) list(format string) string {
	var out []string
	for _, m := range w.machines {
		out = append(out, fmt.Sprintf(format, m.Address))
	}
	return strings.Join(out, ",")
}

// flags of a server with the record in etcd, below a part of the prefix.
func (w *world) flags(part string) []string {
	c := w.certificates
	return append(w.alone(), "--store", "etcd://"+w.list("%s:2379")+"/cluster/"+part, "--store-ca", c.CA, "--store-cert", c.Cert, "--store-key", c.Key,
		"--store-user", etcdtest.User, "--store-password-file", w.password)
}

// alone are the flags of a server with the record in a file.
func (w *world) alone() []string {
	return []string{"server", "--repo", w.remote, "--interval", "2s"}
}

func (w *world) startServer(m *server) { m.server = m.Start("tally", w.flags("all")...) }

func (w *world) tally(m *server, args ...string) machine.Result {
	w.t.Helper()
	r := m.Run("tally", args...)
	if r.Code != 0 {
		w.t.Fatalf("tally %v on %s: %+v", args, m.Name, r)
	}
	return r
}

// begin starts the servers as the guide has it: the first makes the key, the
// others are given it.
func (w *world) begin() {
	w.t.Helper()
	first := w.machines[0]
	wrong := append(w.flags("all"), "--store-password-file", w.remote+"/HEAD")
	if r := first.Run("tally", wrong...); r.Code != 1 || !strings.Contains(r.Err, "authentication") {
		w.t.Fatalf("a server with a wrong password: %+v", r)
	}
	w.startServer(first)
	passphrase, key := filepath.Join(w.t.TempDir(), "passphrase"), filepath.Join(w.t.TempDir(), "key")
	if err := os.WriteFile(passphrase, []byte("correct horse\n"), 0o600); err != nil {
		w.t.Fatal(err)
	}
	w.awaitLeader(first)
	w.tally(first, "key", "export", key, "--passphrase-file", passphrase)
	for _, m := range w.machines[1:] {
		if r := m.Run("tally", w.flags("all")...); r.Code != 1 || !strings.Contains(r.Err, "tally key import") {
			w.t.Fatalf("a server without the key: %+v", r)
		}
		w.tally(m, "key", "import", key, "--passphrase-file", passphrase)
		w.startServer(m)
	}
}

// join makes all machines nodes, with a token of a standby.
func (w *world) join() {
	w.t.Helper()
	standby := w.machines[2]
	var line []string
	w.Eventually(patience, "a standby makes a token", func() error {
		r := standby.Run("tally", "token", "create", "--server", w.list("https://%s:7400"))
		if r.Code != 0 {
			return fmt.Errorf("%+v", r)
		}
		line = strings.Fields(r.Out)
		return nil
	})
	for _, m := range w.machines {
		m.line = line[1:]
		m.startNode()
	}
}

func (m *server) startNode() {
	m.Start("tally", append(slices.Clone(m.line), "--data-dir", "/var/lib/tallyman-node", "--run-dir", "/run/tallyman-node")...)
}

// leader is the machine whose server leads; nil while that is nobody's.
func (w *world) leader(except ...*server) *server {
	for _, m := range w.machines {
		if slices.Contains(except, m) {
			continue
		}
		content, err := os.ReadFile(m.Log("tally"))
		if errors.Is(err, fs.ErrNotExist) {
			continue // its server has yet to start
		}
		if err != nil {
			w.t.Fatal(err)
		}
		text := string(content)
		begun := strings.LastIndex(text, "this server leads\"")
		if begun > strings.LastIndex(text, "this server leads no more") && begun > strings.LastIndex(text, "another server leads") {
			return m
		}
	}
	return nil
}

func (w *world) awaitLeader(m *server) {
	w.t.Helper()
	w.Eventually(patience, m.Name+" leads", func() error {
		if w.leader() != m {
			return errors.New("it does not")
		}
		return nil
	})
}

// taken waits until another server than those leads, and returns it.
func (w *world) taken(except ...*server) (next *server) {
	w.t.Helper()
	w.Eventually(patience, "another server leads", func() error {
		if next = w.leader(except...); next == nil {
			return fmt.Errorf("nobody")
		}
		return nil
	})
	return next
}

// settled waits until a server shows so many ready pods and nodes, and returns
// the pods.
func (w *world) settled(at *server, pods, ready int) (out []container) {
	w.t.Helper()
	w.Eventually(patience, fmt.Sprintf("%s shows %d pods and %d nodes ready", at.Name, pods, ready), func() error {
		o, err := at.Overview()
		if err != nil {
			return err
		}
		up := 0
		for _, n := range o.Nodes {
			if n.Ready {
				up++
			}
		}
		var notReady int
		out, notReady = containers(o)
		if len(out) != pods || notReady > 0 || up != ready {
			return fmt.Errorf("%d pods, %d not ready; %d nodes ready; sync %s %s", len(out), notReady, up, o.Sync.State, o.Sync.Message)
		}
		return nil
	})
	return out
}

// container is a pod's, as it would not be after a restart.
type container struct {
	Pod, Node, ID string
	UID           nodes.UID
	Restarts      int
}

func containers(o *nodes.Overview) (out []container, notReady int) {
	for _, p := range machine.Pods(o, "default", "web-") {
		if p.Pod.Stopping {
			continue // on a machine without power for as long as that lasts
		}
		if len(p.Pod.Status.Containers) == 0 || !p.Pod.Status.Ready {
			notReady++
			continue
		}
		s := p.Pod.Status
		out = append(out, container{p.Key.Name, p.Pod.Node, s.Containers[0].ID, p.Pod.UID, s.Restarts()})
	}
	slices.SortFunc(out, func(a, b container) int { return cmp.Compare(a.Pod, b.Pod) })
	return out, notReady
}

func (w *world) same(before, after []container, what string) {
	w.t.Helper()
	if diff := gocmp.Diff(before, after); diff != "" {
		w.t.Errorf("%s: containers before -, after +:\n%s", what, diff)
	}
}

func TestServers(t *testing.T) {
	w := newWorld(t)
	w.begin()
	w.join()
	first := w.machines[0]
	pods := w.settled(first, 3, 3)
	w.everywhere()

	t.Run("leader killed", func(t *testing.T) {
		var next *server
		w.served(t, func() {
			begun := time.Now()
			first.server.Kill()
			next = w.taken(first)
			t.Logf("another server led after %v", time.Since(begun))
			w.same(pods, w.settled(next, 3, 3), "the leader was killed")
			t.Logf("all nodes were there after %v", time.Since(begun))
		})
		w.startServer(first)
		w.settled(first, 3, 3) // a standby, which shows what the leader does
		w.commit(4, "one more")
		pods = w.settled(next, 4, 3)
	})
	t.Run("leader stopped", func(t *testing.T) {
		old := w.leader()
		var next *server
		w.served(t, func() {
			begun := time.Now()
			old.server.Signal(syscall.SIGSTOP)
			next = w.taken(old)
			t.Logf("another server led after %v", time.Since(begun))
			w.same(pods, w.settled(next, 4, 3), "the leader was stopped")
			t.Logf("all nodes were there after %v", time.Since(begun))
		})
		w.commit(3, "one less")
		pods = w.settled(next, 3, 3)
		old.server.Signal(syscall.SIGCONT)
		w.Eventually(patience, "the old leader is a standby", func() error {
			if leader := w.leader(); leader != next {
				return fmt.Errorf("%v leads", leader)
			}
			return nil
		})
		w.same(pods, w.settled(old, 3, 3), "it went on")
		w.everywhere()
	})
	t.Run("etcd's leader killed", func(t *testing.T) {
		member := w.etcdLeader()
		w.served(t, func() {
			member.etcd.Kill()
			w.commit(4, "without a member")
			w.same(pods, kept(pods, w.settled(first, 4, 3)), "etcd's leader was killed")
		})
		member.startEtcd(w)
		w.commit(3, "with all members")
		pods = w.settled(first, 3, 3)
		w.everywhere()
	})
	t.Run("etcd without a majority", func(t *testing.T) {
		w.served(t, func() { w.withoutMajority(t, pods) })
	})
	t.Run("a machine without power", func(*testing.T) {
		old := w.leader()
		begun := time.Now()
		old.Die()
		next := w.taken(old)
		t.Logf("another server led after %v", time.Since(begun))
		w.settled(next, 3, 2)
		t.Logf("all pods were ready elsewhere after %v", time.Since(begun))
		old.Boot()
		old.startEtcd(w)
		old.startNode()
		w.startServer(old)
		// What is given up there ends now. That it shall is in this record alone, which
		// the next part leaves behind.
		w.Eventually(patience, "no pod is left to end", func() error {
			o, err := next.Overview()
			if err != nil {
				return err
			}
			if all := len(machine.Pods(o, "default", "web-")); all != 3 {
				return fmt.Errorf("%d pods", all)
			}
			return nil
		})
		pods = w.settled(next, 3, 3)
	})
	t.Run("one server, and several again", func(*testing.T) {
		for _, m := range w.machines {
			m.server.Stop()
		}
		first.server = first.Start("tally", w.alone()...)
		w.same(pods, w.settled(first, 3, 3), "from etcd to a file")
		first.server.Stop()
		for _, m := range w.machines {
			m.server = m.Start("tally", w.flags("moved")...)
			w.same(pods, w.settled(first, 3, 3), "from a file to etcd")
		}
		w.commit(4, "after the move")
		w.settled(w.machines[2], 4, 3)
		w.everywhere()
	})
}

// withoutMajority kills two members of etcd, and starts them again.
func (w *world) withoutMajority(t *testing.T, pods []container) {
	t.Helper()
	for _, m := range w.machines[:2] {
		m.etcd.Kill()
	}
	w.Eventually(patience, "nobody leads", func() error {
		if leader := w.leader(); leader != nil {
			return fmt.Errorf("%s leads", leader.Name)
		}
		return nil
	})
	for _, m := range w.machines {
		w.Eventually(patience, m.Name+" says that nobody leads", func() error {
			if status, text := w.get(m, "/readyz"); status != http.StatusServiceUnavailable || !strings.Contains(text, "No server leads") {
				return fmt.Errorf("%d %s", status, text)
			}
			return nil
		})
		if status, _ := w.get(m, "/healthz"); status != http.StatusOK {
			t.Errorf("health of a standby: %d", status)
		}
	}
	for _, m := range w.machines[:2] {
		m.startEtcd(w)
	}
	w.same(pods, w.settled(w.taken(), 3, 3), "etcd was gone")
}

// etcdLeader is the machine of the member that leads the others.
func (w *world) etcdLeader() (leader *server) {
	w.t.Helper()
	w.Eventually(patience, "etcd has a leader", func() error {
		for _, m := range w.machines {
			endpoint := "https://" + m.Address + ":2379"
			etcd, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, TLS: w.certificates.Config(), DialTimeout: patience, Logger: zap.NewNop()})
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Second)
			status, err := etcd.Status(ctx, endpoint)
			cancel()
			etcd.Close()
			if err != nil {
				return err
			}
			if status.Leader == status.Header.GetMemberId() {
				leader = m
				return nil
			}
		}
		return errors.New("nobody leads")
	})
	return leader
}

// kept are the containers of after whose pods were there before.
func kept(before, after []container) []container {
	return slices.DeleteFunc(slices.Clone(after), func(c container) bool {
		return !slices.ContainsFunc(before, func(o container) bool { return o.Pod == c.Pod })
	})
}

// served runs something while every machine asks the next one for the pods, and
// looks that each request is answered.
func (w *world) served(t *testing.T, during func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel() // also when during fails for good
	var asking sync.WaitGroup
	for i, m := range w.machines {
		url := fmt.Sprintf("http://%s:%d/", w.machines[(i+1)%len(w.machines)].Address, nodePort)
		w.Eventually(patience, url+" answers", func() error { return ask(m.Client(), url) })
		asking.Go(func() {
			asked := 0
			for ; ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
				asked++
				if err := ask(m.Client(), url); err != nil {
					t.Errorf("request %d to %s: %v", asked, url, err)
				}
			}
			t.Logf("%d requests to %s", asked, url)
		})
	}
	during()
	cancel()
	asking.Wait()
}

// ask makes one request, over a connection of its own.
func ask(client *http.Client, url string) error {
	answer, err := client.Get(url)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return errors.New(answer.Status)
	}
	return nil
}

// everywhere looks that all servers answer alike.
func (w *world) everywhere() {
	w.t.Helper()
	for _, m := range w.machines {
		w.Eventually(patience, m.Name+" answers", func() error {
			for _, command := range []string{"status", "history"} {
				if r := m.Run("tally", command); r.Code != 0 || !strings.Contains(r.Out, w.newest[:7]) {
					return fmt.Errorf("tally %s: %+v", command, r)
				}
			}
			if status, text := w.get(m, "/readyz"); status != http.StatusOK {
				return fmt.Errorf("%d %s", status, text)
			}
			return nil
		})
	}
}

func (w *world) get(m *server, path string) (int, string) {
	answer, err := m.Client().Get("http://" + machine.PageAddress + path)
	if err != nil {
		return 0, err.Error()
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return 0, err.Error()
	}
	return answer.StatusCode, string(text)
}
