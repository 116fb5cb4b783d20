package etcd

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/tallyman-dev/tallyman/nodes/boottime"
)

const (
	keyLeader  = "leader"
	keyCluster = "cluster"
	keySchema  = "schema"

	// schema is the version of what stands below the prefix.
	schema = 1
	// lookEvery is how often a standby asks who leads. It asks rather than
	// watches: a watch that has come to a halt looks like one with nothing to tell.
	lookEvery = 500 * time.Millisecond
)

var (
	// ErrDeposed is returned by everything that only a leader may do once this
	// server leads no more.
	ErrDeposed = errors.New("this server is no longer the leader")
	// ErrOtherCluster is returned when the prefix belongs to a cluster with another key.
	ErrOtherCluster = errors.New("the store belongs to a cluster with another cluster key; give every server the same one (tally key export, tally key import), or this cluster a prefix of its own")
	// ErrNewer is returned when a newer Tallyman has written the record.
	ErrNewer = errors.New("the record in etcd was written by a newer version of Tallyman; run that version")
)

// errLate is why a term ends that etcd would have extended.
var errLate = errors.New("the lease was not extended in time")

// Check reports whether the store is this cluster's: ErrOtherCluster, ErrNewer,
// or what etcd has against us. An empty store is.
func (c *Client) Check(ctx context.Context) error {
	answer, err := c.read(ctx, clientv3.OpGet(c.key(keyCluster)), clientv3.OpGet(c.key(keySchema)))
	if err != nil {
		return err
	}
	return c.checkMeta(answer)
}

// checkMeta judges the answer to a read of cluster and schema.
func (c *Client) checkMeta(answer *clientv3.TxnResponse) error {
	if value, found := valueOf(answer, 0); found && value != c.o.Fingerprint {
		return ErrOtherCluster
	}
	if value, found := valueOf(answer, 1); found {
		if version, err := strconv.Atoi(value); err != nil || version > schema {
			return fmt.Errorf("schema %s, known up to %d: %w", value, schema, ErrNewer)
		}
	}
	return nil
}

func valueOf(answer *clientv3.TxnResponse, i int) (value string, found bool) {
	kvs := answer.Responses[i].GetResponseRange().GetKvs()
	if len(kvs) == 0 {
		return "", false
	}
	return string(kvs[0].GetValue()), true
}

// Campaign waits until this server leads, under self, which is what the others
// learn of it. Meanwhile seen is told, at every change, what the leader said of
// itself; empty while there is none, or nobody knows. Trouble with etcd is
// waited out; only ErrOtherCluster and ErrNewer end the campaign before ctx does.
func (c *Client) Campaign(ctx context.Context, self string, seen func(leader string)) (*Term, error) {
	var known, trouble string
	seen("")
	for {
		leader, term, err := c.stand(ctx, self)
		switch {
		case term != nil:
			return term, nil
		case errors.Is(err, ErrOtherCluster), errors.Is(err, ErrNewer):
			return nil, err
		case err != nil && ctx.Err() == nil && err.Error() != trouble:
			trouble = err.Error()
			c.o.Log.Warn("the election goes on when etcd answers", "reason", err)
		case err == nil:
			trouble = ""
		}
		if leader != known {
			known = leader
			seen(leader)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(lookEvery):
		}
	}
}

// stand looks who leads, and leads if nobody does.
func (c *Client) stand(ctx context.Context, self string) (leader string, t *Term, err error) {
	answer, err := c.read(ctx,
		clientv3.OpGet(c.key(keyCluster)), clientv3.OpGet(c.key(keySchema)), clientv3.OpGet(c.key(keyLeader)))
	if err != nil {
		return "", nil, err
	}
	if err := c.checkMeta(answer); err != nil {
		return "", nil, err
	}
	if leader, found := valueOf(answer, 2); found {
		return leader, nil, nil
	}
	etcd, err := c.connect()
	if err != nil {
		return "", nil, err
	}
	asked := boottime.Now()
	lease, err := grant(ctx, etcd, c.o.TTL)
	if err != nil {
		return "", nil, plain(c.noted(etcd, err))
	}
	key := c.key(keyLeader)
	revision, err := c.put(ctx, key, self, lease)
	if err != nil || revision == 0 {
		c.revoke(ctx, lease)
		return "", nil, err
	}
	t = &Term{client: c, lease: lease, revision: revision}
	t.begin(asked)
	if err := t.open(ctx); err != nil {
		t.Resign(ctx)
		return "", nil, err
	}
	return "", t, nil
}

func grant(ctx context.Context, etcd *clientv3.Client, ttl time.Duration) (clientv3.LeaseID, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	answer, err := etcd.Grant(ctx, int64(ttl/time.Second))
	if err != nil {
		return 0, err
	}
	return answer.ID, nil
}

// put makes the leader's key, if there is none, and returns its revision; 0 if
// another server was faster. When the outcome is unknown, revoking the lease
// takes back what may have been put.
func (c *Client) put(ctx context.Context, key, self string, lease clientv3.LeaseID) (int64, error) {
	answer, err := c.once(ctx, func(ctx context.Context, etcd *clientv3.Client) (*clientv3.TxnResponse, error) {
		return etcd.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).
			Then(clientv3.OpPut(key, self, clientv3.WithLease(lease))).Commit()
	})
	if err != nil {
		return 0, plain(err)
	}
	if !answer.Succeeded {
		return 0, nil
	}
	return answer.Header.GetRevision(), nil
}

func (c *Client) revoke(ctx context.Context, lease clientv3.LeaseID) {
	etcd, err := c.connect()
	if err != nil {
		return
	}
	// Also when ctx has ended: the lease would keep the next leader waiting.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), attemptTimeout)
	defer cancel()
	_, err = etcd.Revoke(ctx, lease)
	if err = c.noted(etcd, err); err != nil && !errors.Is(rpctypes.Error(err), rpctypes.ErrLeaseNotFound) {
		c.o.Log.Debug("the lease of the leader's key was not given back; it runs out by itself", "reason", err)
	}
}

// Term is the time in which a server leads. Safe for concurrent use.
type Term struct {
	client *Client
	lease  clientv3.LeaseID
	// revision is that of the leader's key; no two terms have the same.
	revision int64
	// until is when the term ends by our own clock unless it is extended, in
	// nanoseconds of CLOCK_BOOTTIME; 0 once it is over for good.
	until atomic.Int64
}

// margin is how much earlier the leader counts its time as over than etcd does:
// for clocks that differ by a hundredth, and to come to an end.
func (t *Term) margin() time.Duration { return t.client.o.TTL / 8 }

// end is that of a term that etcd agreed to when asked at that instant. etcd
// counts from when it answered, so its end is always the later one.
func (t *Term) end(asked time.Duration) int64 {
	return int64(asked + t.client.o.TTL - t.margin())
}

// begin notes that etcd agreed to what was asked at that instant.
func (t *Term) begin(asked time.Duration) { t.until.Store(t.end(asked)) }

// extend does so for a term that began, unless it is over.
func (t *Term) extend(asked time.Duration) bool {
	for t.Leads() {
		if until := t.until.Load(); until != 0 && t.until.CompareAndSwap(until, t.end(asked)) {
			return true
		}
	}
	return false
}

// Revision tells terms apart; a later one has a larger number.
func (t *Term) Revision() int64 { return t.revision }

// Leads tells that no other server can lead at this instant. What a leader says
// without writing it, a lease for instance, it may say only then.
func (t *Term) Leads() bool { return int64(boottime.Now()) < t.until.Load() }

func (t *Term) err() error {
	if t.Leads() {
		return nil
	}
	return ErrDeposed
}

// Lead runs f until it returns, ctx ends or the term is over, which ends f's
// context. It returns what f returns, or why the term is over, after it has
// given back the leadership.
func (t *Term) Lead(ctx context.Context, f func(ctx context.Context) error) error {
	defer t.Resign(ctx)
	done := errors.New("done")
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return t.hold(ctx) })
	group.Go(func() error {
		if err := f(ctx); err != nil {
			return err
		}
		return done
	})
	if err := group.Wait(); !errors.Is(err, done) {
		return err
	}
	return nil
}

// hold extends the term until ctx ends or that fails for too long.
func (t *Term) hold(ctx context.Context) error {
	pause := t.client.o.TTL / 4
	for {
		next := time.NewTimer(min(pause, max(0, time.Duration(t.until.Load())-boottime.Now())))
		select {
		case <-ctx.Done():
			next.Stop()
			return nil
		case <-next.C:
		}
		pause = t.client.o.TTL / 4
		if err := t.renew(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if !t.Leads() || errors.Is(rpctypes.Error(err), rpctypes.ErrLeaseNotFound) {
				t.until.Store(0)
				return fmt.Errorf("%w: %w", ErrDeposed, plain(err))
			}
			pause = retryPause
		}
	}
}

func (t *Term) renew(ctx context.Context) error {
	if !t.Leads() {
		return errLate
	}
	etcd, err := t.client.connect()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, t.client.o.TTL/4)
	defer cancel()
	asked := boottime.Now()
	if _, err := etcd.KeepAliveOnce(ctx, t.lease); err != nil {
		return t.client.noted(etcd, err)
	}
	if !t.extend(asked) {
		return errLate
	}
	return nil
}

// Resign ends the term, if etcd answers, for all to see.
func (t *Term) Resign(ctx context.Context) {
	t.until.Store(0)
	t.client.revoke(ctx, t.lease)
}

// fence is what must hold in etcd for a write of this term.
func (t *Term) fence() clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(t.client.key(keyLeader)), "=", t.revision)
}

// open makes the store ours, or finds that it is another cluster's.
func (t *Term) open(ctx context.Context) error {
	c := t.client
	_, err := c.attempt(ctx, t.err, func(ctx context.Context, etcd *clientv3.Client) (*clientv3.TxnResponse, error) {
		return etcd.Txn(ctx).If(t.fence(), clientv3.Compare(clientv3.CreateRevision(c.key(keyCluster)), "=", 0)).
			Then(clientv3.OpPut(c.key(keyCluster), c.o.Fingerprint), clientv3.OpPut(c.key(keySchema), strconv.Itoa(schema))).Commit()
	})
	if err != nil {
		return err
	}
	return c.Check(ctx) // two servers with different keys may have begun together
}
