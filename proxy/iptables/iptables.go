// Package iptables routes services with the machine's iptables, in either
// variant. It implements proxy.Backend.
//
// Guarantees: Set returns when the kernel routes as it was told; each table
// changes at once, so that no packet meets a half-written one; only chains
// that differ are written; established connections go on, because only the
// first packet of a connection meets these rules; what a previous process left
// is adopted; rules that somebody else removed are back within seconds.
//
// It does not decide what is routed (planner/route does), knows no container,
// and touches no chain of others. It handles IPv4. See DESIGN.md.
package iptables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/tallyman-dev/tallyman/nodes/beat"
	"github.com/tallyman-dev/tallyman/proxy"
	"github.com/tallyman-dev/tallyman/proxy/netfilter"
)

// checkEvery is how often the rules are compared with what they should be: a
// system call, so that it may be often.
const checkEvery = 2 * time.Second

// Options of New.
type Options struct {
	Log *slog.Logger
	// Variant of iptables; netfilter.Auto takes what the machine uses.
	Variant netfilter.Variant
	// Wait is how long to wait for another program's lock; 0 means 5 seconds.
	Wait time.Duration
}

// Backend routes with iptables in the network namespace of the process.
type Backend struct {
	log   *slog.Logger
	realm *netfilter.Realm

	mu sync.Mutex // serialises Set and Close and guards the fields below
	// rules in force; nil before the first Set.
	rules *proxy.Rules
	// stale are UDP flows that a failed clean-up of connection tracking still owes.
	stale frontends
	// left are the TCP frontends whose endpoints changed before the last look of
	// Run, and since.
	left struct{ before, since frontends }
}

var _ proxy.Backend = (*Backend)(nil)

// New finds the iptables programs; it changes nothing yet. It returns
// netfilter.ErrMissing when there are none.
func New(ctx context.Context, o Options) (*Backend, error) {
	if o.Log == nil {
		return nil, errors.New("iptables: no logger")
	}
	tables, err := netfilter.Open(ctx, netfilter.Options{Log: o.Log, Variant: o.Variant, Wait: o.Wait})
	if err != nil {
		return nil, err
	}
	o.Log.Info("routing with iptables", "variant", tables.Variant())
	return &Backend{log: o.Log, realm: tables.Realm(own)}, nil
}

// Set makes the kernel route as c says. A table of generation 0 says that
// nobody knows yet: the kernel keeps what it has.
func (b *Backend) Set(ctx context.Context, c proxy.Config) error {
	if c.Table == nil || c.Table.Generation == 0 {
		b.log.Debug("no route table yet, keeping the routes in force")
		return nil
	}
	rules := proxy.Compile(c)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rules != nil && len(b.stale) == 0 && b.rules.Equal(rules) {
		_, err := b.realm.Check(ctx)
		return err
	}
	if err := b.realm.Apply(ctx, render(rules), jumps()); err != nil {
		return fmt.Errorf("apply route generation %d: %w", c.Table.Generation, err)
	}
	if err := allowLoopback(); err != nil {
		return err
	}
	// Only now: a packet that came earlier would have made the entry anew.
	flows := changed(b.rules, rules)
	stale := flows.of(proxy.UDP).join(b.stale)
	b.rules, b.stale = &rules, stale
	b.left.since = flows.of(proxy.TCP).join(b.left.since)
	if err := stale.forget(); err != nil {
		return fmt.Errorf("forget stale flows of route generation %d: %w", c.Table.Generation, err)
	}
	b.stale = nil
	b.log.Debug("routes in force", "generation", c.Table.Generation, "routes", len(rules.Routes))
	return nil
}

// Run notices and repairs foreign changes until ctx ends. It returns ctx's error.
func (b *Backend) Run(ctx context.Context) error {
	tick := time.NewTimer(beat.Wait(checkEvery))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			tick.Reset(beat.Wait(checkEvery))
		}
		repaired, err := b.realm.Check(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			b.log.Error("cannot repair the routes", "error", err)
		case repaired:
			b.log.Warn("somebody else changed the routes: repaired")
		}
		if err := b.forgetUnanswered(); err != nil {
			b.log.Error("cannot forget attempts to reach endpoints that left", "error", err)
		}
	}
}

// forgetUnanswered has the kernel forget attempts to connect to endpoints that
// left before the look before: whoever is alive has answered by now. It is
// called by Run, at every look.
func (b *Backend) forgetUnanswered() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	due := b.left.before
	b.left.before, b.left.since = b.left.since, nil
	if len(due) == 0 {
		return nil
	}
	due = due.in(*b.rules)
	err := due.forget()
	if err != nil {
		b.left.since = due
	}
	return err
}

// Close removes every chain and jump, of earlier processes too, and forbids
// again what loopback node ports needed.
func (b *Backend) Close(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rules, b.stale, b.left.before, b.left.since = nil, nil, nil, nil
	return errors.Join(b.realm.Clear(ctx), forbidLoopback())
}
