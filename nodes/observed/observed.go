// Package observed keeps the record: what only Tallyman decided, what the
// nodes reported last, which revisions were seen and what became of them, and
// recent events. Store keeps it in one bbolt file.
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
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/bbolt"

	"github.com/tallyman-dev/tallyman/nodes"
)

const (
	fileName = "observed.db"
	// flushAfter is how long what is written behind may wait.
	flushAfter = time.Second
	// lockTimeout is how long Open waits for another process to let go.
	lockTimeout = 3 * time.Second
)

// Options of a Store.
type Options struct {
	// Dir holds the file; it is made if missing.
	Dir string
	Log *slog.Logger
	// Now is the wall clock; default time.Now.
	Now func() time.Time
}

// Store is the record in a bbolt file. Safe for concurrent use. Readers see
// what was written at once, before it is durable.
type Store struct {
	o     Options
	db    *bbolt.DB
	fresh bool
	// dirty wakes Run.
	dirty chan struct{}

	// writing is held by whoever commits; it guards done and err of requests.
	writing sync.Mutex

	mu sync.Mutex
	// guarded by mu
	requests []*request
	nodes    map[string]*nodeRecord
	history  []entry
	events   *events
	behind   behind
}

// nodeRecord is what one node reported last.
type nodeRecord struct {
	state    *nodes.NodeState
	statuses map[nodes.UID]nodes.PodStatus
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

// Open opens or makes the record. The caller closes it.
func Open(o Options) (*Store, error) {
	if o.Log == nil {
		return nil, errors.New("record: no logger")
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
	s, err := open(path, o)
	var damage *damageError
	if errors.As(err, &damage) {
		aside := path + ".corrupt-" + o.Now().UTC().Format("20060102T150405.000Z")
		if err := os.Rename(path, aside); err != nil {
			return nil, fmt.Errorf("set the damaged record aside: %w", err)
		}
		o.Log.Error("the record can't be read; it was set aside and is rebuilt from the nodes; nothing restarts",
			"file", path, "set_aside", aside, "reason", damage.cause)
		s, err = open(path, o)
		statErr = os.ErrNotExist
	}
	if err != nil {
		return nil, err
	}
	s.fresh = statErr != nil
	return s, nil
}

// Fresh tells that the record began empty: a new cluster, or one whose record
// was lost and comes back from the nodes.
func (s *Store) Fresh() bool { return s.fresh }

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

// Close writes what is still to write and closes the file.
func (s *Store) Close() error {
	err := s.Flush()
	if closeErr := s.db.Close(); closeErr != nil {
		return errors.Join(err, fmt.Errorf("close the record: %w", closeErr))
	}
	return err
}

// Flush writes everything that waits and returns once it is durable.
func (s *Store) Flush() error {
	s.writing.Lock()
	defer s.writing.Unlock()
	return s.commit(nil)
}

// commit writes decisions and what waits to be written behind in one
// transaction. The caller holds writing.
func (s *Store) commit(decisions []nodes.Decision) error {
	s.mu.Lock()
	waiting := s.behind.take()
	s.mu.Unlock()
	if len(decisions) == 0 && waiting.empty() {
		return nil
	}
	err := s.db.Update(func(tx *bbolt.Tx) error {
		if err := writeDecisions(tx, decisions); err != nil {
			return err
		}
		return waiting.write(tx)
	})
	if err != nil {
		s.mu.Lock()
		s.behind.putBack(waiting)
		s.mu.Unlock()
		return fmt.Errorf("write the record: %w", err)
	}
	return nil
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
	var out []nodes.Decision
	err := s.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketDecisions).ForEachBucket(func(kind []byte) error {
			return tx.Bucket(bucketDecisions).Bucket(kind).ForEach(func(key, value []byte) error {
				out = append(out, nodes.Decision{
					Kind: string(kind), Key: string(key), Value: append(json.RawMessage(nil), value...),
				})
				return nil
			})
		})
	})
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
	s.writing.Lock()
	defer s.writing.Unlock()
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
	err := s.commit(all)
	for _, r := range requests {
		r.done, r.err = true, err
	}
}

func writeDecisions(tx *bbolt.Tx, decisions []nodes.Decision) error {
	for _, d := range decisions {
		if d.Value == nil {
			if kind := tx.Bucket(bucketDecisions).Bucket([]byte(d.Kind)); kind != nil {
				if err := kind.Delete([]byte(d.Key)); err != nil {
					return err
				}
			}
			continue
		}
		kind, err := tx.Bucket(bucketDecisions).CreateBucketIfNotExists([]byte(d.Kind))
		if err != nil {
			return err
		}
		if err := kind.Put([]byte(d.Key), d.Value); err != nil {
			return err
		}
	}
	return nil
}
