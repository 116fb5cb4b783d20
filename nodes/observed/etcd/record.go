package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/observed"
)

const (
	keyRecord   = "record"
	keySequence = "sequence"

	// maxOps and maxBytes bound one transaction. etcd's own bounds are 128
	// operations (--max-txn-ops) and 1.5 MiB (--max-request-bytes) by default.
	maxOps   = 100
	maxBytes = 1 << 20
	// maxValue is the longest value: a place is one key, and a request has more
	// than the value in it.
	maxValue = 1<<20 + 400<<10
	// pageSize is how many keys one read brings.
	pageSize = 1000
)

// Apart is what observed.Options.Apart should be for a record in etcd.
const Apart = maxOps

// errMoved is returned when a write of ours whose outcome was unknown turns out
// to have been taken.
var errMoved = errors.New("an earlier write was taken after all")

// record is an observed.Backend. Its methods are called one at a time.
type record struct {
	term  *Term
	fresh bool
	// over says why nothing may be written any more.
	over func() error

	// sequence is the revision of the newest write that we know of; each write
	// wants to find it, so none can come after one that was made later.
	sequence int64
	// writes counts the writes of this term, to tell them apart.
	writes uint64
	// journal is what is decided and does not stand in its places yet; nil if nothing.
	journal *journal
	// unsure tells that sequence and journal have to be read anew.
	unsure bool
}

// Record is the record, for the time of this term.
func (t *Term) Record(ctx context.Context) (observed.Backend, error) {
	r := &record{term: t, over: t.err}
	if err := r.look(ctx); err != nil {
		return nil, err
	}
	r.fresh = r.sequence == 0
	return r, r.settle(ctx)
}

// Fresh implements observed.Backend.
func (r *record) Fresh() bool { return r.fresh }

// Close implements observed.Backend. There is nothing to close.
func (r *record) Close() error { return nil }

// look reads where the record stands.
func (r *record) look(ctx context.Context) error {
	c := r.term.client
	answer, err := c.read(ctx, clientv3.OpGet(c.key(keySequence)), clientv3.OpGet(c.key(keyJournal)))
	if err != nil {
		return err
	}
	r.sequence, r.journal = 0, nil
	if kvs := answer.Responses[0].GetResponseRange().GetKvs(); len(kvs) > 0 {
		r.sequence = kvs[0].GetModRevision()
	}
	if value, found := valueOf(answer, 1); found {
		r.journal = &journal{}
		if err := json.Unmarshal([]byte(value), r.journal); err != nil {
			return fmt.Errorf("%s: %w", c.key(keyJournal), err)
		}
	}
	r.unsure = false
	return nil
}

// Write implements observed.Backend.
func (r *record) Write(ctx context.Context, changes []observed.Change) error {
	for _, c := range changes {
		if len(c.Value) > maxValue {
			return fmt.Errorf("%s %s %s has %d bytes, and one value in etcd at most %d", c.Part, c.Of, c.Key, len(c.Value), maxValue)
		}
	}
	for {
		err := r.tryWrite(ctx, changes)
		if err == nil {
			return nil
		}
		// What came of it is unknown, so the next write looks first.
		r.unsure = true
		if !errors.Is(err, errMoved) {
			return err
		}
	}
}

func (r *record) tryWrite(ctx context.Context, changes []observed.Change) error {
	if r.unsure {
		if err := r.look(ctx); err != nil {
			return err
		}
	}
	if err := r.settle(ctx); err != nil {
		return err
	}
	if len(changes) <= maxOps && size(changes) <= maxBytes {
		return r.commit(ctx, r.ops(changes))
	}
	return r.enter(ctx, changes)
}

func size(changes []observed.Change) int {
	n := 0
	for _, c := range changes {
		n += sizeOf(c)
	}
	return n
}

func sizeOf(c observed.Change) int { return len(c.Part) + len(c.Of) + len(c.Key) + len(c.Value) }

// ops puts changes into their places.
func (r *record) ops(changes []observed.Change) []clientv3.Op {
	ops := make([]clientv3.Op, 0, len(changes))
	for _, c := range changes {
		key := r.place(c.Place)
		if c.Value == nil {
			ops = append(ops, clientv3.OpDelete(key))
		} else {
			ops = append(ops, clientv3.OpPut(key, string(c.Value)))
		}
	}
	return ops
}

func (r *record) place(p observed.Place) string {
	return r.term.client.key(keyRecord, string(p.Part), url.PathEscape(p.Of), p.Key)
}

// placeOf is the inverse of place.
func (r *record) placeOf(key string) (p observed.Place, err error) {
	below, _ := strings.CutPrefix(key, r.term.client.key(keyRecord)+"/")
	part, rest, _ := strings.Cut(below, "/")
	of, name, found := strings.Cut(rest, "/")
	if !found {
		return p, fmt.Errorf("key %q in etcd is none of ours: remove it, or give the cluster a prefix of its own", key)
	}
	if of, err = url.PathUnescape(of); err != nil {
		return p, fmt.Errorf("key %q in etcd is none of ours: %w", key, err)
	}
	return observed.Place{Part: observed.Part(part), Of: of, Key: name}, nil
}

// commit makes one transaction of ops, which takes place while this term lasts
// and directly after the write before it, or never.
func (r *record) commit(ctx context.Context, ops []clientv3.Op) error {
	c := r.term.client
	r.writes++
	mine := fmt.Sprintf("%d/%d", r.term.revision, r.writes)
	sequence := c.key(keySequence)
	then := append([]clientv3.Op{clientv3.OpPut(sequence, mine)}, ops...)
	answer, err := c.attempt(ctx, r.over, func(ctx context.Context, etcd *clientv3.Client) (*clientv3.TxnResponse, error) {
		return etcd.Txn(ctx).If(r.term.fence(), clientv3.Compare(clientv3.ModRevision(sequence), "=", r.sequence)).Then(then...).
			Else(clientv3.OpGet(sequence), clientv3.OpGet(c.key(keyLeader))).Commit()
	})
	switch {
	case err != nil:
		return err
	case answer.Succeeded:
		r.sequence = answer.Header.GetRevision()
		return nil
	}
	if kvs := answer.Responses[1].GetResponseRange().GetKvs(); len(kvs) == 0 || kvs[0].GetCreateRevision() != r.term.revision {
		r.term.until.Store(0)
		return ErrDeposed
	}
	kvs := answer.Responses[0].GetResponseRange().GetKvs()
	if len(kvs) > 0 && string(kvs[0].GetValue()) == mine { // an attempt that was not answered was taken
		r.sequence = kvs[0].GetModRevision()
		return nil
	}
	return errMoved
}

// Load implements observed.Backend.
func (r *record) Load(ctx context.Context, yield func(observed.Change) error) error {
	for _, part := range []observed.Part{observed.PartNodes, observed.PartStatuses, observed.PartHistory, observed.PartEvents} {
		if err := r.each(ctx, part, yield); err != nil {
			return err
		}
	}
	return nil
}

// Decisions implements observed.Backend.
func (r *record) Decisions(ctx context.Context) (out []nodes.Decision, err error) {
	if r.unsure {
		if err := r.look(ctx); err != nil {
			return nil, err
		}
	}
	if err := r.settle(ctx); err != nil {
		r.unsure = true
		return nil, err
	}
	err = r.each(ctx, observed.PartDecisions, func(c observed.Change) error {
		if !json.Valid(c.Value) {
			return fmt.Errorf("decision %s %s is no JSON", c.Of, c.Key)
		}
		out = append(out, nodes.Decision{Kind: c.Of, Key: c.Key, Value: c.Value})
		return nil
	})
	return out, err
}

// each yields what stands in a part at one instant, ordered by key.
func (r *record) each(ctx context.Context, part observed.Part, yield func(observed.Change) error) error {
	c := r.term.client
	from := c.key(keyRecord, string(part)) + "/"
	options := []clientv3.OpOption{clientv3.WithRange(clientv3.GetPrefixRangeEnd(from)), clientv3.WithLimit(pageSize)}
	for revision := int64(0); ; {
		answer, err := c.read(ctx, clientv3.OpGet(from, append(options, clientv3.WithRev(revision))...))
		if err != nil {
			return err
		}
		if revision == 0 {
			revision = answer.Header.GetRevision()
		}
		page := answer.Responses[0].GetResponseRange()
		for _, kv := range page.GetKvs() {
			place, err := r.placeOf(string(kv.GetKey()))
			if err != nil {
				return err
			}
			if err := yield(observed.Change{Place: place, Value: kv.GetValue()}); err != nil {
				return err
			}
			from = string(kv.GetKey()) + "\x00"
		}
		if !page.GetMore() {
			return nil
		}
	}
}
