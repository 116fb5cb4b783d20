package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/observed"
	"github.com/tallyman-dev/tallyman/nodes/observed/etcd"
	"github.com/tallyman-dev/tallyman/nodes/registry"
	"github.com/tallyman-dev/tallyman/proxy"
)

const (
	// settleTime is what agents may need, beyond the silence that is allowed them, to
	// notice that a server which was stopped is none, and to find the one that leads.
	settleTime = 3 * time.Second
	// takeoverGrace is how long a new leader waits for nodes that it knows of: as
	// long as a node may be silent by default, and to settle.
	takeoverGrace = 4*time.Second + settleTime
	// stopTimeout is how long a server that was deposed may take to stop. It hands
	// nothing out meanwhile.
	stopTimeout = 10 * time.Second
)

// candidate is one of several servers.
type candidate struct {
	instance
	o     serverOptions
	key   clusterKey
	store *etcd.Client
	log   *slog.Logger
	// self is what the others learn of this server when it leads.
	self leader
	// leads is who leads, as far as this server knows; nil while nobody does.
	leads atomic.Pointer[leader]
}

// leader is what a leader says of itself.
type leader struct {
	// Name is its machine's, Address host:port where agents and servers reach it.
	Name    string `json:"name"`
	Address string `json:"address"`
}

// runSeveral runs one of several servers: a standby until it is elected, the
// leader until it is deposed.
func runSeveral(ctx context.Context, s streams, i instance, o serverOptions) error {
	return i.hold(ctx, func(log *slog.Logger) error {
		c, err := newCandidate(ctx, i, o, log)
		if err != nil {
			return err
		}
		defer c.store.Close()
		page := &server{instance: i, o: o, log: log}
		if err := page.openAccess(); err != nil {
			return err
		}
		fmt.Fprintf(s.err, "The page is at %s\n", page.link())
		return c.run(ctx)
	})
}

func newCandidate(ctx context.Context, i instance, o serverOptions, log *slog.Logger) (*candidate, error) {
	c := &candidate{instance: i, o: o, log: log}
	var err error
	if c.key, err = o.store.openSharedKey(ctx, i.dataDir, log); err != nil {
		return nil, err
	}
	if c.self, err = o.introduce(); err != nil {
		return nil, err
	}
	c.store, err = o.store.open(c.key, log)
	return c, err
}

// introduce says what the others learn of this server.
func (o *serverOptions) introduce() (leader, error) {
	name, err := os.Hostname()
	if err != nil {
		return leader{}, err
	}
	if o.store.advertise != "" {
		return leader{name, o.store.advertise}, nil
	}
	host, port, err := net.SplitHostPort(o.listen)
	if err != nil {
		return leader{}, usageError{fmt.Errorf("--listen: %w", err)}
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		addr, err := outwardAddr()
		if err != nil || !addr.IsValid() {
			return leader{}, usageError{errors.New("this machine has no address that others would reach it at: give one with --advertise HOST:" + port)}
		}
		host = addr.String()
	}
	return leader{name, net.JoinHostPort(host, port)}, nil
}

// run serves until ctx ends, in turn as a standby and as the leader.
func (c *candidate) run(ctx context.Context) error {
	for ctx.Err() == nil {
		term, err := c.stand(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		c.log.Info("this server leads", "term", term.Revision(), "address", c.self.Address)
		err = term.Lead(ctx, func(ctx context.Context) error { return c.lead(ctx, term) })
		switch {
		case ctx.Err() != nil:
			return nil
		case !errors.Is(err, etcd.ErrDeposed):
			return err
		}
		c.log.Warn("this server leads no more; it is a standby", "term", term.Revision(), "reason", err)
	}
	return nil
}

// stand answers as a standby until this server is elected.
func (c *candidate) stand(ctx context.Context) (term *etcd.Term, err error) {
	self, err := json.Marshal(c.self)
	if err != nil {
		return nil, err
	}
	standby, err := c.newStandby()
	if err != nil {
		return nil, err
	}
	elected := errors.New("elected")
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return standby.run(ctx) })
	group.Go(func() error {
		var err error
		if term, err = c.store.Campaign(ctx, string(self), c.see); err != nil {
			return err
		}
		return elected
	})
	if err := group.Wait(); !errors.Is(err, elected) {
		if term != nil {
			term.Resign(ctx)
		}
		return nil, err
	}
	return term, nil
}

// see notes what the leader says of itself.
func (c *candidate) see(text string) {
	seen := &leader{}
	if text == "" {
		seen = nil
	} else if err := json.Unmarshal([]byte(text), seen); err != nil {
		c.log.Error("what the leader says of itself can't be read", "reason", err)
		seen = nil
	}
	if before := c.leads.Swap(seen); seen != nil && (before == nil || *before != *seen) {
		c.log.Info("another server leads", "leader", seen.Name, "address", seen.Address)
	}
}

// lead serves as the leader until ctx ends.
func (c *candidate) lead(ctx context.Context, term *etcd.Term) error {
	c.leads.Store(&c.self)
	server, err := newLeader(ctx, c, term)
	if err != nil {
		return err
	}
	defer server.close()
	// What does not stop could still speak to nodes; nobody must wait for it.
	stuck := make(chan struct{})
	defer close(stuck)
	stop := context.AfterFunc(ctx, func() {
		select {
		case <-stuck:
		case <-time.After(stopTimeout):
			c.log.Error("the server does not stop; the process ends", "waited", stopTimeout)
			os.Exit(exitFailed)
		}
	})
	defer stop()
	return server.run(ctx)
}

// newLeader wires a server on the shared record.
func newLeader(ctx context.Context, c *candidate, term *etcd.Term) (*server, error) {
	backend, err := term.Record(ctx)
	if err != nil {
		return nil, err
	}
	record, err := observed.New(ctx, backend, observed.Options{Log: c.log, Apart: etcd.Apart})
	if err != nil {
		return nil, err
	}
	if err := c.setFileAside(); err != nil {
		return nil, errors.Join(err, record.Close())
	}
	return wireServer(&server{instance: c.instance, o: c.o, log: c.log, term: term, record: record}, c.key)
}

// setFileAside sees to it that a way back to one server begins with what the nodes
// keep: the file is of before, when there was one.
func (c *candidate) setFileAside() error {
	aside, err := observed.SetAside(filepath.Join(c.dataDir, "server"), time.Now())
	if aside != "" {
		c.log.Info("the record is in the shared store; the file of before is set aside", "set_aside", aside)
	}
	return err
}

// leading hands out only what a leader may.
type leading struct {
	*registry.Registry
	term *etcd.Term
}

// Ledger implements loop.Executor.
func (l leading) Ledger(decisions []nodes.Decision) {
	if l.term.Leads() {
		l.Registry.Ledger(decisions)
	}
}

// Route implements loop.Executor.
func (l leading) Route(t *proxy.Table) {
	if l.term.Leads() {
		l.Registry.Route(t)
	}
}

// Assign implements loop.Executor.
func (l leading) Assign(a nodes.Assignment) {
	if l.term.Leads() {
		l.Registry.Assign(a)
	}
}
