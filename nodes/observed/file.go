package observed

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime/debug"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/tallyman-dev/tallyman/nodes"
)

// The buckets of the file. Decisions hold a bucket a kind, statuses a bucket a
// node; everything else is flat. Values are JSON.
var (
	bucketMeta      = []byte("meta")
	bucketDecisions = []byte("decisions")
	bucketNodes     = []byte("nodes")
	bucketStatuses  = []byte("statuses")
	bucketHistory   = []byte("history")
	bucketEvents    = []byte("events")

	keySchema = []byte("schema")
)

// ErrNewer is returned by Open when a newer Tallyman has written the record.
var ErrNewer = errors.New("the record was written by a newer version of Tallyman; run that version or delete the record (the nodes fill it again)")

// damageError says that the file can't be read and may be set aside.
type damageError struct{ cause error }

func (e *damageError) Error() string { return "damaged record: " + e.cause.Error() }
func (e *damageError) Unwrap() error { return e.cause }

// migration brings the file from one schema version to the next.
type migration func(tx *bbolt.Tx) error

// migrations returns the steps in order: step i makes version i+1. Released
// steps are never changed.
func migrations() []migration {
	return []migration{createBuckets}
}

func createBuckets(tx *bbolt.Tx) error {
	for _, name := range [][]byte{bucketMeta, bucketDecisions, bucketNodes, bucketStatuses, bucketHistory, bucketEvents} {
		if _, err := tx.CreateBucketIfNotExists(name); err != nil {
			return fmt.Errorf("make bucket %s: %w", name, err)
		}
	}
	return nil
}

// open opens, migrates and reads the file. Anything that the file's content
// causes, a fault on its mapped pages too, is a *damageError.
func open(path string, o Options) (s *Store, err error) {
	db, err := openFile(path)
	if err != nil {
		return nil, err
	}
	s = &Store{o: o, db: db, dirty: make(chan struct{}, 1), nodes: map[string]*nodeRecord{}, events: newEvents(o.Now)}
	s.behind.init()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if cause := recover(); cause != nil {
			err = &damageError{fmt.Errorf("%v", cause)}
		}
		if err != nil {
			closeQuietly(db)
		}
	}()
	if err := migrate(db, migrations()); err != nil {
		return nil, err
	}
	if err := db.View(s.load); err != nil {
		return nil, &damageError{err}
	}
	return s, nil
}

// closeQuietly closes a file that may be too damaged to close.
func closeQuietly(db *bbolt.DB) {
	defer func() { _ = recover() }()
	_ = db.Close() // the first error is the one that counts
}

func openFile(path string) (db *bbolt.DB, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if cause := recover(); cause != nil {
			err = &damageError{fmt.Errorf("%v", cause)}
		}
	}()
	db, err = bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout: lockTimeout,
		// The list of free pages is kept in the file. Without it bbolt would look
		// for them at the start in a goroutine of its own, and a damaged page would
		// end the process there instead of being noticed here.
		NoFreelistSync: false,
		FreelistType:   bbolt.FreelistMapType,
	})
	switch {
	case err == nil:
		return db, os.Chmod(path, 0o600)
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("record %s: another process has it open", path)
	case isOSError(err):
		return nil, fmt.Errorf("open the record: %w", err)
	}
	return nil, &damageError{err}
}

// isOSError tells a file that can't be opened from one that can't be read.
func isOSError(err error) bool {
	var pathError *os.PathError
	return errors.As(err, &pathError)
}

// migrate runs the steps that the file has not seen, all in one commit.
func migrate(db *bbolt.DB, steps []migration) error {
	var done uint64
	err := db.View(func(tx *bbolt.Tx) error {
		if meta := tx.Bucket(bucketMeta); meta != nil {
			if value := meta.Get(keySchema); len(value) == 8 {
				done = binary.BigEndian.Uint64(value)
			}
		}
		return nil
	})
	if err != nil {
		return &damageError{err}
	}
	want := uint64(len(steps))
	if done > want {
		return fmt.Errorf("schema %d, known up to %d: %w", done, want, ErrNewer)
	}
	if done == want {
		return nil
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for i, step := range steps[done:] {
			if err := step(tx); err != nil {
				return fmt.Errorf("to schema %d: %w", done+uint64(i)+1, err)
			}
		}
		return tx.Bucket(bucketMeta).Put(keySchema, binary.BigEndian.AppendUint64(nil, want))
	})
	if err != nil {
		return fmt.Errorf("migrate the record: %w", err)
	}
	return nil
}

// load reads everything once: it fills the memory and proves that each page
// can be read.
func (s *Store) load(tx *bbolt.Tx) error {
	err := tx.Bucket(bucketDecisions).ForEachBucket(func(kind []byte) error {
		return tx.Bucket(bucketDecisions).Bucket(kind).ForEach(func(key, value []byte) error {
			if !json.Valid(value) {
				return fmt.Errorf("decision %s %s is no JSON", kind, key)
			}
			return nil
		})
	})
	if err != nil {
		return err
	}
	if err := s.loadNodes(tx); err != nil {
		return err
	}
	err = tx.Bucket(bucketHistory).ForEach(func(key, value []byte) error {
		if len(key) != 8 {
			return fmt.Errorf("history entry %x: the key must have 8 bytes", key)
		}
		e := entry{id: binary.BigEndian.Uint64(key)}
		if err := json.Unmarshal(value, &e.HistoryEntry); err != nil {
			return fmt.Errorf("history entry %x: %w", key, err)
		}
		s.history = append(s.history, e)
		return nil
	})
	if err != nil {
		return err
	}
	return tx.Bucket(bucketEvents).ForEach(func(key, value []byte) error {
		var e nodes.Event
		if err := json.Unmarshal(value, &e); err != nil {
			return fmt.Errorf("event %x: %w", key, err)
		}
		s.events.restore(e)
		return nil
	})
}

func (s *Store) loadNodes(tx *bbolt.Tx) error {
	err := tx.Bucket(bucketNodes).ForEach(func(name, value []byte) error {
		state := &nodes.NodeState{}
		if err := json.Unmarshal(value, state); err != nil {
			return fmt.Errorf("node %s: %w", name, err)
		}
		s.node(string(name)).state = state
		return nil
	})
	if err != nil {
		return err
	}
	return tx.Bucket(bucketStatuses).ForEachBucket(func(name []byte) error {
		record := s.node(string(name))
		return tx.Bucket(bucketStatuses).Bucket(name).ForEach(func(uid, value []byte) error {
			var status nodes.PodStatus
			if err := json.Unmarshal(value, &status); err != nil {
				return fmt.Errorf("status of pod %s: %w", uid, err)
			}
			record.statuses[status.UID] = status
			return nil
		})
	})
}
