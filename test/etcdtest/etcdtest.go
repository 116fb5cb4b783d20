// Package etcdtest runs an etcd of several members, each a process of the
// etcd-server package, for tests: it kills and pauses members, and cuts the
// lines between a client and them.
package etcdtest

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// patience is how long anything may take on a slow machine.
const patience = 2 * time.Minute

// Options of a Cluster.
type Options struct {
	// Members is how many there are; default 1.
	Members int
	// Certificates secure what clients and members say; nil for none.
	Certificates *Certificates
}

// Cluster is an etcd. Its members end with the test.
type Cluster struct {
	t       *testing.T
	o       Options
	dir     string
	members []*member
}

type member struct {
	name         string
	client, peer string // host:port
	process      *exec.Cmd
}

// Start starts a cluster and waits until it answers.
func Start(t *testing.T, o Options) *Cluster {
	t.Helper()
	if _, err := exec.LookPath("etcd"); err != nil {
		t.Fatalf("%v: install the package etcd-server (make setup-test)", err)
	}
	o.Members = max(1, o.Members)
	c := &Cluster{t: t, o: o, dir: t.TempDir()}
	addresses := free(t, 2*o.Members)
	for i := range o.Members {
		c.members = append(c.members, &member{name: fmt.Sprintf("m%d", i), client: addresses[2*i], peer: addresses[2*i+1]})
	}
	t.Cleanup(func() {
		for i := range c.members {
			c.Kill(i)
		}
	})
	for i := range c.members {
		c.StartMember(i)
	}
	c.Await()
	return c
}

// free picks loopback addresses that nobody listens on.
func free(t *testing.T, n int) (addresses []string) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		addresses = append(addresses, l.Addr().String())
	}
	return addresses
}

// StartMember starts a member that was killed.
func (c *Cluster) StartMember(i int) {
	c.t.Helper()
	m, scheme := c.members[i], c.scheme()
	var all []string
	for _, other := range c.members {
		all = append(all, other.name+"="+scheme+other.peer)
	}
	m.process = exec.Command("etcd", append([]string{
		"--name", m.name, "--data-dir", filepath.Join(c.dir, m.name),
		"--listen-client-urls", scheme + m.client, "--advertise-client-urls", scheme + m.client,
		"--listen-peer-urls", scheme + m.peer, "--initial-advertise-peer-urls", scheme + m.peer,
		"--initial-cluster", strings.Join(all, ","), "--logger", "zap", "--log-level", "error",
	}, c.o.Certificates.Flags()...)...)
	m.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := os.OpenFile(filepath.Join(c.dir, m.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		c.t.Fatal(err)
	}
	defer log.Close()
	m.process.Stdout, m.process.Stderr = log, log
	if err := m.process.Start(); err != nil {
		c.t.Fatalf("start etcd: %v", err)
	}
}

func (c *Cluster) scheme() string {
	if c.o.Certificates != nil {
		return "https://"
	}
	return "http://"
}

// Kill ends a member as a power cut does; its data stay. One that has ended
// already stays so.
func (c *Cluster) Kill(i int) {
	if m := c.members[i]; m.process != nil {
		_ = m.process.Process.Kill()
		_ = m.process.Wait() // says that it was killed
		m.process = nil
	}
}

// Pause stops a member in its tracks, Continue lets it go on.
func (c *Cluster) Pause(i int)    { c.signal(i, syscall.SIGSTOP) }
func (c *Cluster) Continue(i int) { c.signal(i, syscall.SIGCONT) }

func (c *Cluster) signal(i int, s syscall.Signal) {
	c.t.Helper()
	if err := c.members[i].process.Process.Signal(s); err != nil {
		c.t.Fatalf("%s to etcd: %v", s, err)
	}
}

// Endpoints are host:port of the members.
func (c *Cluster) Endpoints() (out []string) {
	for _, m := range c.members {
		out = append(out, m.client)
	}
	return out
}

// Address is what --store takes.
func (c *Cluster) Address(prefix string) string {
	return "etcd://" + strings.Join(c.Endpoints(), ",") + "/" + prefix
}

// Client is a plain client; user and password may be empty. It ends with the test.
func (c *Cluster) Client(user, password string) *clientv3.Client {
	c.t.Helper()
	config := clientv3.Config{Username: user, Password: password, DialTimeout: patience, Logger: zap.NewNop()}
	for _, endpoint := range c.Endpoints() {
		config.Endpoints = append(config.Endpoints, c.scheme()+endpoint)
	}
	if c.o.Certificates != nil {
		config.TLS = c.o.Certificates.Config()
	}
	client, err := clientv3.New(config)
	if err != nil {
		c.t.Fatalf("etcd's client: %v", err)
	}
	c.t.Cleanup(func() { client.Close() })
	return client
}

// Await waits until a majority answers.
func (c *Cluster) Await() {
	c.t.Helper()
	client := c.Client("", "")
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	for {
		attempt, stop := context.WithTimeout(ctx, 2*time.Second)
		_, err := client.Get(attempt, "await")
		stop()
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			c.t.Fatalf("etcd does not answer: %v\n%s", err, c.logs())
		}
	}
}

func (c *Cluster) logs() string {
	var out strings.Builder
	for _, m := range c.members {
		content, err := os.ReadFile(filepath.Join(c.dir, m.name+".log"))
		fmt.Fprintf(&out, "%s: %s %v\n", m.name, content, err)
	}
	return out.String()
}

// Values are what stands below a prefix, by key.
func (c *Cluster) Values(client *clientv3.Client, prefix string) map[string]string {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	answer, err := client.Get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		c.t.Fatalf("read %s: %v", prefix, err)
	}
	out := map[string]string{}
	for _, kv := range answer.Kvs {
		out[string(kv.GetKey())] = string(kv.GetValue())
	}
	return out
}
