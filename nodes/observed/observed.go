// Package observed keeps the record: what only Tallyman decided, what the
// nodes reported last, which revisions were seen and what became of them, and
// recent events. Open keeps it in one bbolt file; package etcd below this one
// keeps it in an etcd that several servers share.
//
// It guarantees that decisions are durable when Record returns, that any
// number of concurrent Record calls share their commits, and that a file that
// can't be read is set aside, never deleted, and replaced by an empty record
// (Fresh tells), which the nodes then fill again. Statuses, history and events
// are written behind, within a second or with the next decisions: losing that
// second in a crash costs nothing that the nodes would not say again.
//
// It does not interpret decisions and keeps nothing that a repository holds.
package observed

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
)

const (
	fileName = "observed.db"
	// flushAfter is how long what is written behind may wait.
	flushAfter = time.Second
	// piece is how many values that are written behind share a commit, as far as
	// Options.Apart does not say: all of 150,000 pods at once took 200 MiB.
	piece = 4096
	// lockTimeout is how long Open waits for another process to let go.
	lockTimeout = 3 * time.Second
)

// Options of a Store.
type Options struct {
	// Dir holds the file; it is made if missing. New has no use for it.
	Dir string
	Log *slog.Logger
	// Now is the wall clock; default time.Now.
	Now func() time.Time
	// Apart, when positive, is for a backend whose writes have a bounded size:
	// what is written behind does not go with decisions, and in pieces of so many
	// values, so that decisions need not wait for all of them.
	Apart int
}

// Store is the record. Safe for concurrent use. Readers see what was written
// at once, before it is durable.
type Store struct {
	o       Options
	backend Backend
	// dirty wakes Run.
	dirty chan struct{}

	// writing is held by whoever commits; it guards done and err of requests.
	writing turn

	mu sync.Mutex
	// guarded by mu
	requests []*request
	nodes    map[string]*nodeRecord
	history  []entry
	events   *events
	behind   behind
}

// turn is a lock for what may take long: in the virtual time of package
// testing/synctest, waiting for it lets time pass, which a mutex does not.
type turn chan struct{}

func (t turn) take() { t <- struct{}{} }
func (t turn) give() { <-t }

// nodeRecord is what one node reported last.
type nodeRecord struct {
	state *nodes.NodeState
	// statuses are not changed: they are shared with the reports that brought them.
	statuses map[nodes.UID]*nodes.PodStatus
}

// request is one call of Record.
type request struct {
	decisions []nodes.Decision
	done      bool
	err       error
}

// entry is a history entry under its key in the file.
type entry struct {
	id uint64
	nodes.HistoryEntry
}

// Open opens or makes the record in a bbolt file. The caller closes it.
func Open(o Options) (*Store, error) {
	if o.Log == nil {
		return nil, errNoLogger
	}
	if o.Dir == "" {
		return nil, errors.New("record: no directory")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the record's directory: %w", err)
	}
	path := filepath.Join(o.Dir, fileName)
	_, statErr := os.Stat(path)
	s, err := openStored(path, o, statErr != nil)
	var damage *damageError
	if !errors.As(err, &damage) {
		return s, err
	}
	aside := path + ".corrupt-" + o.Now().UTC().Format("20060102T150405.000Z")
	if err := os.Rename(path, aside); err != nil {
		return nil, fmt.Errorf("set the damaged record aside: %w", err)
	}
	o.Log.Error("the record can't be read; it was set aside and is rebuilt from the nodes; nothing restarts",
		"file", path, "set_aside", aside, "reason", damage.cause)
	return openStored(path, o, true)
}

// SetAside gives the file in a directory another name, for a record elsewhere has
// taken its place: an old one must not be taken for the newest later. It returns
// that name, empty when there was no file.
func SetAside(dir string, now time.Time) (aside string, err error) {
	path := filepath.Join(dir, fileName)
	aside = path + ".replaced-" + now.UTC().Format("20060102T150405.000Z")
	err = os.Rename(path, aside)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("set the record aside: %w", err)
	}
	return aside, nil
}

func openStored(path string, o Options, fresh bool) (s *Store, err error) {
	f, err := openBackend(path)
	if err != nil {
		return nil, err
	}
	f.fresh = fresh
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("%v", cause)
		}
		if err != nil {
			closeQuietly(f.db)
			s, err = nil, &damageError{err}
		}
	}()
	return New(context.Background(), f, o)
}

var errNoLogger = errors.New("record: no logger")

// New makes a store of what the backend holds. The caller closes it, and so
// the backend, unless New fails.
func New(ctx context.Context, b Backend, o Options) (*Store, error) {
	if o.Log == nil {
		return nil, errNoLogger
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Store{o: o, backend: b, dirty: make(chan struct{}, 1), writing: make(turn, 1), nodes: map[string]*nodeRecord{}, events: newEvents(o.Now), behind: behind{}}
	if err := b.Load(ctx, s.restore); err != nil {
		return nil, fmt.Errorf("read the record: %w", err)
	}
	slices.SortFunc(s.history, func(a, b entry) int { return cmp.Compare(a.id, b.id) })
	return s, nil
}

// restore takes in a value that the backend holds.
func (s *Store) restore(c Change) error {
	var err error
	switch c.Part {
	case PartNodes:
		state := &nodes.NodeState{}
		err = json.Unmarshal(c.Value, state)
		s.node(c.Key).state = state
	case PartStatuses:
		var status nodes.PodStatus
		err = json.Unmarshal(c.Value, &status)
		s.node(c.Of).statuses[status.UID] = &status
	case PartHistory:
		e := entry{}
		if e.id, err = strconv.ParseUint(c.Key, 16, 64); err == nil {
			err = json.Unmarshal(c.Value, &e.HistoryEntry)
		}
		s.history = append(s.history, e)
	case PartEvents:
		var e nodes.Event
		err = json.Unmarshal(c.Value, &e)
		s.events.restore(e)
	}
	if err != nil {
		return fmt.Errorf("%s %s %s: %w", c.Part, c.Of, c.Key, err)
	}
	return nil
}

// Fresh tells that the record began empty: a new cluster, or one whose record
// was lost and comes back from the nodes.
func (s *Store) Fresh() bool { return s.backend.Fresh() }

// Run writes behind until ctx ends, and then writes the rest. It returns nil.
func (s *Store) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return s.Flush()
		case <-s.dirty:
		}
		select {
		case <-ctx.Done():
			return s.Flush()
		case <-time.After(flushAfter):
		}
		if err := s.Flush(); err != nil {
			s.o.Log.Error("the record was not written; it is tried again with the next change", "reason", err)
		}
	}
}

// Close writes what is still to write and closes the backend.
func (s *Store) Close() error {
	err := s.Flush()
	if closeErr := s.backend.Close(); closeErr != nil {
		return errors.Join(err, fmt.Errorf("close the record: %w", closeErr))
	}
	return err
}

// Flush writes everything that waits and returns once it is durable.
func (s *Store) Flush() error {
	s.mu.Lock()
	places := s.behind.places()
	s.mu.Unlock()
	for some := range slices.Chunk(places, cmp.Or(s.o.Apart, piece)) {
		s.writing.take()
		err := s.commit(context.Background(), nil, some)
		s.writing.give()
		if err != nil {
			return err
		}
	}
	return nil
}

// commit writes decisions, and with them what waits to be written behind at
// places. The caller holds writing.
func (s *Store) commit(ctx context.Context, decisions []nodes.Decision, places []Place) error {
	s.mu.Lock()
	waiting := s.behind.take(places)
	s.mu.Unlock()
	changes, refused := waiting.changes()
	for _, reason := range refused {
		s.o.Log.Error("the record can't keep a value; it goes on without", "reason", reason)
	}
	if len(decisions)+len(changes) == 0 {
		return nil
	}
	if err := s.backend.Write(ctx, append(decisionsOf(decisions), changes...)); err != nil {
		s.mu.Lock()
		s.behind.putBack(waiting)
		s.mu.Unlock()
		return fmt.Errorf("write the record: %w", err)
	}
	return nil
}

// along are the places that are written with decisions: all that wait, if they
// are few and nothing has them apart.
func (s *Store) along() []Place {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.o.Apart > 0 || len(s.behind) > piece {
		return nil
	}
	return s.behind.places()
}

// touch wakes Run. The caller holds mu.
func (s *Store) touch() {
	select {
	case s.dirty <- struct{}{}:
	default:
	}
}

// Decisions returns every decision, ordered by kind and key.
func (s *Store) Decisions() ([]nodes.Decision, error) {
	s.writing.take()
	defer s.writing.give()
	out, err := s.backend.Decisions(context.Background())
	if err != nil {
		return nil, fmt.Errorf("read decisions: %w", err)
	}
	return out, nil
}

// Record stores decisions, forgets those without a value, and returns once
// that is durable. Concurrent calls share a commit; what waits to be written
// behind goes with it.
func (s *Store) Record(ctx context.Context, decisions []nodes.Decision) error {
	if len(decisions) == 0 {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	for _, d := range decisions {
		if d.Kind == "" || d.Key == "" {
			return fmt.Errorf("record decision %q %q: kind and key must not be empty", d.Kind, d.Key)
		}
	}
	mine := &request{decisions: decisions}
	s.mu.Lock()
	s.requests = append(s.requests, mine)
	s.mu.Unlock()
	s.writing.take()
	defer s.writing.give()
	if !mine.done {
		s.commitRequests()
	}
	return mine.err
}

// commitRequests commits everything that was asked for while the previous
// commit ran. The caller holds writing.
func (s *Store) commitRequests() {
	s.mu.Lock()
	requests := s.requests
	s.requests = nil
	s.mu.Unlock()
	var all []nodes.Decision
	for _, r := range requests {
		all = append(all, r.decisions...)
	}
	err := s.commit(context.Background(), all, s.along())
	for _, r := range requests {
		r.done, r.err = true, err
	}
}
