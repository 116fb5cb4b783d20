package sim

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/observed"
)

const (
	// termOf is how long a leader's key lasts that nobody extends, termMargin how
	// much earlier its leader counts the time as over; see nodes/observed/etcd.
	termOf     = 4 * time.Second
	termMargin = termOf / 8
	// lookEvery is how often a standby asks who leads, storeRetry how soon a
	// server asks again that had no answer.
	lookEvery, storeRetry = 500 * time.Millisecond, 200 * time.Millisecond
	// pieces is how many values are written behind at once.
	pieces = 100
)

var (
	errDeposed  = errors.New("this server leads no more")
	errNoAnswer = errors.New("the store does not answer")
)

// shared is the store of several servers: the contract of nodes/observed/etcd in
// memory. It is one linear history of transactions, each of which takes place only
// while the term that asks for it lasts. Safe for concurrent use.
type shared struct {
	// lasts is how long a leader's key stays that nobody extends.
	lasts time.Duration

	mu sync.Mutex
	// guarded by mu
	revision int64
	values   map[observed.Place]json.RawMessage
	// leader is the revision that the leader's key was made with; 0 for none. It
	// vanishes at ends.
	leader int64
	ends   time.Time
	// quorum tells that requests are answered.
	quorum bool
	// unfenced is a planted bug: whoever asks may write.
	unfenced bool
}

func newShared() *shared {
	return &shared{lasts: termOf, values: map[observed.Place]json.RawMessage{}, quorum: true}
}

// halt takes the store's quorum, or gives it back. Without one no lease runs out.
func (d *shared) halt(halted bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if halted == !d.quorum {
		return
	}
	if d.quorum = !halted; d.quorum && d.leader != 0 {
		d.ends = time.Now().Add(d.lasts) // a new leader of etcd extends every lease
	}
}

// leads is the revision of the term that lasts; 0 when nobody leads.
func (d *shared) leads() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.current()
}

// current is leads for those who hold mu.
func (d *shared) current() int64 {
	if d.quorum && !time.Now().Before(d.ends) {
		d.leader = 0
	}
	return d.leader
}

// campaign makes the leader's key if there is none, and returns its revision.
func (d *shared) campaign() (int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case !d.quorum:
		return 0, errNoAnswer
	case d.current() != 0:
		return 0, nil
	}
	d.revision++
	d.leader, d.ends = d.revision, time.Now().Add(d.lasts)
	return d.leader, nil
}

// extend has the term last anew from now.
func (d *shared) extend(term int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case !d.quorum:
		return errNoAnswer
	case d.current() != term:
		return errDeposed
	}
	d.ends = time.Now().Add(d.lasts)
	return nil
}

// resign ends a term.
func (d *shared) resign(term int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.quorum && d.leader == term {
		d.leader = 0
	}
}

// write is one transaction of a term.
func (d *shared) write(term int64, changes []observed.Change) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case !d.quorum:
		return errNoAnswer
	case d.current() != term && !d.unfenced:
		return errDeposed
	}
	d.revision++
	for _, c := range changes {
		if c.Value == nil {
			delete(d.values, c.Place)
		} else {
			d.values[c.Place] = slices.Clone(c.Value)
		}
	}
	return nil
}

// read is everything of one part, ordered, at one instant.
func (d *shared) read(part observed.Part) (list []observed.Change, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.quorum {
		return nil, errNoAnswer
	}
	for place, value := range d.values {
		if place.Part == part {
			list = append(list, observed.Change{Place: place, Value: value})
		}
	}
	slices.SortFunc(list, func(a, b observed.Change) int {
		return cmp.Or(cmp.Compare(a.Of, b.Of), cmp.Compare(a.Key, b.Key))
	})
	return list, nil
}

// empty reports whether nothing was ever written.
func (d *shared) empty() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.values) == 0
}

// undecided reports whether no decision was ever written: a revision that comes
// in force before any node has reported is none.
func (d *shared) undecided() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for place := range d.values {
		if place.Part == observed.PartDecisions {
			return false
		}
	}
	return true
}

// term is the time in which a server leads.
type term struct {
	host *host
	// revision tells terms apart; a later one has a larger number.
	revision int64
	fresh    bool

	mu sync.Mutex
	// guarded by mu: when it ends by the server's own clock unless it is extended
	until time.Duration
}

// leads tells that no other server can lead at this instant, by the server's clock.
func (t *term) leads() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.host.clock.now() < t.until || t.host.world.clings()
}

// extend notes that the store agreed to what was asked at that instant.
func (t *term) extend(asked time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.until = asked + termOf - termMargin
}

func (t *term) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.until = 0
}

// hold extends the term until ctx ends or the term is over.
func (t *term) hold(ctx context.Context) error {
	for pause := termOf / 4; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = storeRetry
		asked := t.host.clock.now()
		err := t.host.ask(ctx, func() error { return t.host.world.store.extend(t.revision) })
		switch {
		case err == nil && t.leads():
			t.extend(asked)
			pause = termOf / 4
		case t.host.world.clings():
		case errors.Is(err, errDeposed), !t.leads():
			t.end()
			return errDeposed
		}
	}
}

// try asks the store until it answers or the term is over.
func (t *term) try(ctx context.Context, request func() error) error {
	for {
		err := t.host.ask(ctx, request)
		switch {
		case err == nil || ctx.Err() != nil:
			return err
		case errors.Is(err, errDeposed):
			t.end()
			return err
		case !t.leads():
			return errDeposed
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(storeRetry):
		}
	}
}

// Fresh implements observed.Backend.
func (t *term) Fresh() bool { return t.fresh }

// Close implements observed.Backend.
func (t *term) Close() error { return nil }

// Write implements observed.Backend. Asked twice it says the same: nobody else
// writes in this term, and a later term lets nothing of this one through.
func (t *term) Write(ctx context.Context, changes []observed.Change) error {
	return t.try(ctx, func() error { return t.host.world.store.write(t.revision, changes) })
}

// Load implements observed.Backend.
func (t *term) Load(ctx context.Context, yield func(observed.Change) error) error {
	for _, part := range []observed.Part{observed.PartNodes, observed.PartStatuses, observed.PartHistory, observed.PartEvents} {
		list, err := t.read(ctx, part)
		if err != nil {
			return err
		}
		for _, c := range list {
			if err := yield(c); err != nil {
				return err
			}
		}
	}
	return nil
}

// Decisions implements observed.Backend.
func (t *term) Decisions(ctx context.Context) (out []nodes.Decision, err error) {
	list, err := t.read(ctx, observed.PartDecisions)
	for _, c := range list {
		out = append(out, nodes.Decision{Kind: c.Of, Key: c.Key, Value: c.Value})
	}
	return out, err
}

func (t *term) read(ctx context.Context, part observed.Part) (list []observed.Change, err error) {
	err = t.try(ctx, func() (err error) {
		list, err = t.host.world.store.read(part)
		return err
	})
	return list, err
}

// String is what stands in the store.
func (d *shared) String() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	count := map[observed.Part]int{}
	for place := range d.values {
		count[place.Part]++
	}
	return fmt.Sprintf("leader %d, revision %d, %v", d.leader, d.revision, slices.Sorted(maps.Keys(count)))
}
