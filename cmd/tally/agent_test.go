package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/tallyman-dev/tallyman/nodes/trust"
	"github.com/tallyman-dev/tallyman/nodes/trust/trusttest"
	"github.com/tallyman-dev/tallyman/nodes/wire"
)

func TestServerAddresses(t *testing.T) {
	for _, c := range []struct {
		flags []string
		want  []string
	}{
		{[]string{"https://a:1"}, []string{"a:1"}},
		{[]string{"https://a", "https://b:7401/"}, []string{"a:7400", "b:7401"}},
		{[]string{"https://[2001:db8::1]"}, []string{"[2001:db8::1]:7400"}},
		{nil, nil},
		{[]string{"a:7400"}, nil},
		{[]string{"http://a"}, nil},
		{[]string{"https://a/path"}, nil},
		{[]string{"https://"}, nil},
	} {
		got, err := serverAddresses(c.flags)
		if !slices.Equal(got, c.want) || (err == nil) == (c.want == nil) {
			t.Errorf("%v: %v, %v; want %v", c.flags, got, err, c.want)
		}
	}
}

func TestNodeLabels(t *testing.T) {
	good := nodeOptions{zone: "z1", region: "r1", nodeLabels: []string{"disk=ssd", "example.com/empty="}}
	want := map[string]string{"topology.kubernetes.io/zone": "z1", "topology.kubernetes.io/region": "r1", "disk": "ssd", "example.com/empty": ""}
	if got, err := good.labels(); err != nil || !maps.Equal(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	for _, text := range []string{"disk", "=ssd", "a b=c", "disk=no space", "kubernetes.io/hostname=x", "node-restriction.kubernetes.io/a=b", "x.node-restriction.kubernetes.io/a=b"} {
		bad := nodeOptions{nodeLabels: []string{text}}
		if got, err := bad.labels(); !errors.As(err, new(usageError)) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
}

// cluster makes an authority whose clock is ahead.
func cluster(t *testing.T, secret byte, ahead time.Duration) *trust.Authority {
	t.Helper()
	a, err := trust.New(bytes.Repeat([]byte{secret}, 32), func() time.Time { return time.Now().Add(ahead) })
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// joinedAs gives a machine a certificate of a cluster; an empty name none.
func joinedAs(t *testing.T, a *trust.Authority, name string) *trust.Node {
	t.Helper()
	n, err := trust.OpenNode(filepath.Join(t.TempDir(), "tls"))
	if err != nil || name == "" {
		return n
	}
	trusttest.Join[trust.Hash](t, n, a, name)
	return n
}

// TestWhenATokenIsNeeded: the first time, after the certificate expired, and to
// take a name over.
func TestWhenATokenIsNeeded(t *testing.T) {
	a, other, old := cluster(t, 1, 0), cluster(t, 2, 0), cluster(t, 1, -100*24*time.Hour)
	token := func(a *trust.Authority, t2 trust.Token) string {
		if t2.Expires.IsZero() {
			t2.Expires = time.Now().Add(time.Hour)
		}
		text, err := a.NewToken(t2)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	past := token(old, trust.Token{Expires: time.Now().Add(-100*24*time.Hour + time.Hour)})
	for _, c := range []struct {
		what          string
		has           *trust.Node
		token, name   string
		given, needed bool
		as, fails     string
	}{
		{"new", joinedAs(t, a, ""), token(a, trust.Token{}), "host", false, true, "host", ""},
		{"new, with a name in the token", joinedAs(t, a, ""), token(a, trust.Token{Node: "n1"}), "host", false, true, "n1", ""},
		{"new, with another name", joinedAs(t, a, ""), token(a, trust.Token{Node: "n1"}), "n2", true, false, "", "for node n1, not n2"},
		{"new, without a token", joinedAs(t, a, ""), "", "host", false, false, "", "has not joined yet"},
		{"new, with an old token", joinedAs(t, a, ""), past, "host", false, false, "", "it expired on"},
		{"new, with no token", joinedAs(t, a, ""), "x", "host", false, false, "", "begins with tally1."},
		{"joined", joinedAs(t, a, "n1"), "", "host", false, false, "n1", ""},
		{"joined, the token is still there", joinedAs(t, a, "n1"), past, "host", false, false, "n1", ""},
		{"joined, a token of another cluster", joinedAs(t, a, "n1"), token(other, trust.Token{}), "host", false, false, "", "this machine belongs to"},
		{"joined, another name", joinedAs(t, a, "n1"), "", "n2", true, false, "", "joined as node n1"},
		{"joined, and takes over", joinedAs(t, a, "n1"), token(a, trust.Token{Node: "n1", Replace: true}), "host", false, true, "n1", ""},
		{"expired", joinedAs(t, old, "n1"), "", "host", false, false, "", "expired on"},
		{"expired, with a token", joinedAs(t, old, "n1"), token(a, trust.Token{}), "host", false, true, "n1", ""},
	} {
		j := &joining{token: c.token, name: c.name, given: c.given, identity: c.has, log: slog.New(slog.DiscardHandler)}
		_, needed, err := j.prepare()
		if needed != c.needed || (err == nil) != (c.fails == "") || err != nil && !strings.Contains(err.Error(), c.fails) {
			t.Errorf("%s: needed %v, %v; want %v, %q", c.what, needed, err, c.needed, c.fails)
		}
		if c.as != "" && j.name != c.as {
			t.Errorf("%s: joins as %s, want %s", c.what, j.name, c.as)
		}
	}
}

// TestAStandbySendsNewMachinesToTheLeader: the line that was pasted may name it alone.
func TestAStandbySendsNewMachinesToTheLeader(t *testing.T) {
	a := cluster(t, 1, 0)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	standby, leader := listen(), listen()
	server, err := wire.NewServer(wire.ServerOptions{
		Credentials: credentials.NewTLS(a.ServerTLS()), Log: slog.New(slog.DiscardHandler),
		Accept: func(context.Context, *wire.Session) error { return nil },
		Join:   func(_ context.Context, r wire.JoinRequest) ([][]byte, error) { return a.Certify(r.Node, r.Request) },
	})
	if err != nil {
		t.Fatal(err)
	}
	running.Go(func() {
		if err := server.Serve(ctx, leader); err != nil {
			t.Errorf("leader: %v", err)
		}
	})
	running.Go(func() {
		err := wire.ServeStandby(ctx, standby, wire.StandbyOptions{
			Credentials: credentials.NewTLS(a.ServerTLS()), Leader: func() string { return leader.Addr().String() },
		})
		if err != nil {
			t.Errorf("standby: %v", err)
		}
	})
	text, err := a.NewToken(trust.Token{Expires: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	addresses := []string{standby.Addr().String()}
	j := &joining{addresses: addresses, token: text, name: "n1", identity: joinedAs(t, a, ""), log: slog.New(slog.DiscardHandler)}
	if err := j.try(ctx, trust.Token{Authority: a.Hash()}); err != nil || j.identity.Name() != "n1" {
		t.Fatalf("joined as %q, %v", j.identity.Name(), err)
	}
	config, err := j.identity.TLS()
	if err != nil {
		t.Fatal(err)
	}
	l := remoteLink(addresses, config, j.identity)
	if l.elsewhere == nil {
		t.Fatal("nobody listens to what the standby says")
	}
	l.elsewhere(leader.Addr().String())
	conn, err := l.dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := conn.RemoteAddr().String(); got != leader.Addr().String() {
		t.Errorf("dialled %s", got)
	}
}
