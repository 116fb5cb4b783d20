//go:build e2e

package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/observed"
	"github.com/tallyman-dev/tallyman/nodes/observed/observedtest"
	"github.com/tallyman-dev/tallyman/test/etcdtest"
)

const patience = 2 * time.Minute

func open(t *testing.T, address string, change func(*Options)) *Client {
	t.Helper()
	endpoints, prefix, err := ParseAddress(address)
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Endpoints: endpoints, Prefix: prefix, Fingerprint: "this", Log: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&o)
	}
	c, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// lead campaigns until c leads; the term is held for as long as the test lasts.
func lead(t *testing.T, c *Client) *Term {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	term, err := c.Campaign(ctx, t.Name(), func(string) {})
	if err != nil {
		t.Fatalf("campaign: %v", err)
	}
	ended := make(chan struct{})
	holding, stop := context.WithCancel(context.Background())
	go func() {
		defer close(ended)
		_ = term.hold(holding) // the tests look at what it does
	}()
	t.Cleanup(func() { stop(); <-ended; term.Resign(context.Background()) })
	return term
}

func openRecord(t *testing.T, term *Term) *record {
	t.Helper()
	b, err := term.Record(t.Context())
	if err != nil {
		t.Fatalf("record: %v", err)
	}
	return b.(*record)
}

// place is a prefix of its own in an etcd.
type place struct {
	term *Term
}

func (p place) Open(t *testing.T, now func() time.Time) observedtest.Record {
	s, err := observed.New(t.Context(), openRecord(t, p.term), observed.Options{Log: slog.New(slog.DiscardHandler), Now: now, Apart: Apart})
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return s
}

func TestRecordConforms(t *testing.T) {
	cluster := etcdtest.Start(t, etcdtest.Options{})
	observedtest.Run(t, func(t *testing.T) observedtest.Place {
		return place{lead(t, open(t, cluster.Address(t.Name()), nil))}
	})
}

// TestRecordConformsSecured speaks TLS, as a user who may do nothing outside of
// the prefix.
func TestRecordConformsSecured(t *testing.T) {
	certificates := etcdtest.NewCertificates(t)
	cluster := etcdtest.Start(t, etcdtest.Options{Certificates: certificates})
	const prefix = "secured/cluster"
	etcdtest.Confine(t, cluster.Client("", ""), prefix)
	secure := func(o *Options) {
		o.TLS, o.User, o.Password = certificates.Config(), etcdtest.User, etcdtest.Password
	}
	observedtest.Run(t, func(t *testing.T) observedtest.Place {
		return place{lead(t, open(t, cluster.Address(prefix+"/"+strings.ReplaceAll(t.Name(), "/", "-")), secure))}
	})
	for what, change := range map[string]func(o *Options){
		"password":   func(o *Options) { secure(o); o.Password = "wrong" },
		"user":       func(o *Options) { secure(o); o.User, o.Password = "", "" },
		"permission": func(o *Options) { secure(o); o.Prefix = "elsewhere" },
	} {
		err := open(t, cluster.Address(prefix), change).Check(t.Context())
		if err == nil || !strings.Contains(err.Error(), "etcd ") {
			t.Errorf("wrong %s: %v", what, err)
		}
	}
}

// TestMembersForgetTokens: after a start they know those of no client, and the
// clients log in again.
func TestMembersForgetTokens(t *testing.T) {
	certificates := etcdtest.NewCertificates(t)
	cluster := etcdtest.Start(t, etcdtest.Options{Certificates: certificates})
	etcdtest.Confine(t, cluster.Client("", ""), "p")
	c := open(t, cluster.Address("p"), func(o *Options) {
		o.TLS, o.User, o.Password = certificates.Config(), etcdtest.User, etcdtest.Password
	})
	lead(t, c)
	for range 2 {
		cluster.Kill(0)
		cluster.StartMember(0)
		deadline := time.Now().Add(patience)
		for {
			err := c.Check(t.Context())
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
	}
}

func TestOtherClusterIsRefused(t *testing.T) {
	cluster := etcdtest.Start(t, etcdtest.Options{})
	first := open(t, cluster.Address("p"), nil)
	if err := first.Check(t.Context()); err != nil {
		t.Fatalf("an empty store: %v", err)
	}
	lead(t, first)
	other := open(t, cluster.Address("p"), func(o *Options) { o.Fingerprint = "other" })
	if err := other.Check(t.Context()); !errors.Is(err, ErrOtherCluster) {
		t.Errorf("check: %v", err)
	}
	if _, err := other.Campaign(t.Context(), "", func(string) {}); !errors.Is(err, ErrOtherCluster) {
		t.Errorf("campaign: %v", err)
	}
	if err := open(t, cluster.Address("q"), func(o *Options) { o.Fingerprint = "other" }).Check(t.Context()); err != nil {
		t.Errorf("another prefix: %v", err)
	}
}

func decision(key, value string) observed.Change {
	c := observed.Change{Place: observed.Place{Part: observed.PartDecisions, Of: "k", Key: key}}
	if value != "" {
		c.Value = json.RawMessage(value)
	}
	return c
}

// step is so many decisions of one value that they need several requests.
func step(n, value int) (changes []observed.Change) {
	for i := range n {
		changes = append(changes, decision(fmt.Sprintf("%05d", i), fmt.Sprintf(`{"v":%d,"x":%q}`, value, strings.Repeat("x", 5000))))
	}
	return changes
}

func decisionsOf(changes []observed.Change) (out []nodes.Decision) {
	for _, c := range changes {
		out = append(out, nodes.Decision{Kind: c.Of, Key: c.Key, Value: c.Value})
	}
	return out
}

// TestStepIsWholeOrNot ends a leader after each of the requests that a large
// step takes; the next leader finds all of it or nothing.
func TestStepIsWholeOrNot(t *testing.T) {
	cluster := etcdtest.Start(t, etcdtest.Options{})
	const size = 250
	wholes := 0
	for requests := 0; ; requests++ {
		c := open(t, cluster.Address(fmt.Sprint("p", requests)), nil)
		before, after := step(size, 1), step(size, 2)
		first := lead(t, c)
		r := openRecord(t, first)
		if err := r.Write(t.Context(), before); err != nil {
			t.Fatal(err)
		}
		if err := r.settle(t.Context()); err != nil {
			t.Fatal(err)
		}
		left := requests
		r.over = func() error {
			if left--; left < 0 {
				return ErrDeposed
			}
			return nil
		}
		err := r.Write(t.Context(), after)
		if err == nil {
			err = r.settle(t.Context())
		}
		first.Resign(t.Context())
		got, readErr := openRecord(t, lead(t, c)).Decisions(t.Context())
		if readErr != nil {
			t.Fatal(readErr)
		}
		switch {
		case reflect.DeepEqual(got, decisionsOf(after)):
			wholes++
		case !reflect.DeepEqual(got, decisionsOf(before)):
			t.Fatalf("after %d requests neither the old nor the new decisions", requests)
		case wholes > 0:
			t.Fatalf("%d requests put the step in force, %d do not", requests-1, requests)
		}
		if err == nil {
			break
		}
	}
	if wholes < 3 {
		t.Errorf("only %d crashes came after the step was in force: that is no large step", wholes)
	}
	if rest := cluster.Values(cluster.Client("", ""), "p0/"+keyParts); len(rest) > 0 {
		t.Errorf("%d parts are left", len(rest))
	}
}

// TestDeposedWritesNothing takes the leadership from a leader that knows
// nothing of it.
func TestDeposedWritesNothing(t *testing.T) {
	cluster := etcdtest.Start(t, etcdtest.Options{})
	ours := open(t, cluster.Address("p"), func(o *Options) { o.TTL = time.Hour })
	old := lead(t, ours)
	r := openRecord(t, old)
	if err := r.Write(t.Context(), []observed.Change{decision("a", "1")}); err != nil {
		t.Fatal(err)
	}
	if _, err := cluster.Client("", "").Revoke(t.Context(), old.lease); err != nil {
		t.Fatal(err)
	}
	next := openRecord(t, lead(t, open(t, cluster.Address("p"), nil)))
	if err := next.Write(t.Context(), []observed.Change{decision("a", "2")}); err != nil {
		t.Fatal(err)
	}
	if !old.Leads() {
		t.Fatal("the old leader was not to know")
	}
	for range 2 {
		if err := r.Write(t.Context(), []observed.Change{decision("a", "3")}); !errors.Is(err, ErrDeposed) {
			t.Errorf("the old leader's write: %v", err)
		}
		if old.Leads() {
			t.Error("it still thinks that it leads")
		}
	}
	got, err := next.Decisions(t.Context())
	if err != nil || !reflect.DeepEqual(got, decisionsOf([]observed.Change{decision("a", "2")})) {
		t.Errorf("%v, %v", got, err)
	}
}

// TestPartitionedLeaderEnds cuts a leader off: it ends by its own clock before
// another one leads.
func TestPartitionedLeaderEnds(t *testing.T) {
	cluster := etcdtest.Start(t, etcdtest.Options{})
	lines := cluster.Lines(t)
	old := lead(t, open(t, lines.Address("p"), nil))
	r := openRecord(t, old)
	ended := make(chan error, 1)
	go func() {
		ended <- old.Lead(t.Context(), func(ctx context.Context) error { <-ctx.Done(); return nil })
	}()
	time.Sleep(2 * old.client.o.TTL)
	if !old.Leads() {
		t.Fatal("a leader with etcd at hand does not lead")
	}
	lines.Cut()
	next := lead(t, open(t, cluster.Address("p"), nil))
	if old.Leads() {
		t.Error("two lead")
	}
	if next.Revision() <= old.Revision() {
		t.Errorf("term %d after %d", next.Revision(), old.Revision())
	}
	if err := r.Write(t.Context(), []observed.Change{decision("a", "1")}); !errors.Is(err, ErrDeposed) {
		t.Errorf("write: %v", err)
	}
	lines.Mend()
	if err := <-ended; !errors.Is(err, ErrDeposed) {
		t.Errorf("the term ended: %v", err)
	}
	if !next.Leads() {
		t.Error("the next leader does not lead any more")
	}
}

// TestHeldUpWriteComesToNothing holds writes up until they are given up, and
// lets them go while later ones are made.
func TestHeldUpWriteComesToNothing(t *testing.T) {
	cluster := etcdtest.Start(t, etcdtest.Options{Members: 3})
	lines := cluster.Lines(t)
	term := lead(t, open(t, lines.Address("p"), func(o *Options) { o.TTL = 10 * time.Minute }))
	r := openRecord(t, term)
	if err := r.Write(t.Context(), []observed.Change{decision("a", "0")}); err != nil {
		t.Fatal(err)
	}
	value, sure := 0, 0
	write := func(ctx context.Context) {
		value++
		if err := r.Write(ctx, []observed.Change{decision("a", fmt.Sprint(value))}); err == nil {
			sure = value
		} else if errors.Is(err, ErrDeposed) {
			t.Fatal(err)
		}
	}
	for range 5 {
		lines.Cut()
		for range 3 {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			write(ctx)
			cancel()
		}
		lines.Mend()
		for sure < value {
			write(t.Context())
		}
		got, err := r.Decisions(t.Context())
		if err != nil || string(got[0].Value) != fmt.Sprint(value) {
			t.Fatalf("%s after %d was written, %v", got[0].Value, value, err)
		}
	}
}

// TestFewRoundTrips holds a step of 1,000 pods to what it may cost.
func TestFewRoundTrips(t *testing.T) {
	cluster := etcdtest.Start(t, etcdtest.Options{})
	r := openRecord(t, lead(t, open(t, cluster.Address("p"), nil)))
	var pods []observed.Change
	for i := range 1000 {
		pods = append(pods, decision(fmt.Sprint(i), fmt.Sprintf("%q", strings.Repeat("x", 600))))
	}
	before := r.writes
	if err := r.Write(t.Context(), pods); err != nil {
		t.Fatal(err)
	}
	if n := r.writes - before; n > 2 {
		t.Errorf("%d transactions until 1,000 decisions are durable", n)
	}
}
