package observed

import (
	"context"
	"encoding/binary"
	"encoding/hex"
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

// mapped is how much of a growing file is addressed from the start, in bytes:
// whenever it outgrows that, bbolt copies everything that the transaction at hand has
// touched. It takes no memory.
const mapped = 1 << 30

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

// file keeps a record in one bbolt file.
type file struct {
	db    *bbolt.DB
	fresh bool
}

// openBackend opens and migrates the file and proves that all of it can be
// read. Anything that the file's content causes, a fault on its mapped pages
// too, is a *damageError.
func openBackend(path string) (f *file, err error) {
	db, err := openFile(path)
	if err != nil {
		return nil, err
	}
	f = &file{db: db}
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
	if err := db.View(validDecisions); err != nil {
		return nil, &damageError{err}
	}
	return f, nil
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
		NoFreelistSync:  false,
		FreelistType:    bbolt.FreelistMapType,
		InitialMmapSize: mapped,
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

func validDecisions(tx *bbolt.Tx) error {
	return tx.Bucket(bucketDecisions).ForEachBucket(func(kind []byte) error {
		return tx.Bucket(bucketDecisions).Bucket(kind).ForEach(func(key, value []byte) error {
			if !json.Valid(value) {
				return fmt.Errorf("decision %s %s is no JSON", kind, key)
			}
			return nil
		})
	})
}

func (f *file) Fresh() bool { return f.fresh }

func (f *file) Close() error { return f.db.Close() }

// Load implements Backend.
func (f *file) Load(_ context.Context, yield func(Change) error) error {
	return f.db.View(func(tx *bbolt.Tx) error {
		for _, part := range []struct {
			part    Part
			bucket  []byte
			written func([]byte) string
		}{
			{PartNodes, bucketNodes, asText}, {PartHistory, bucketHistory, hex.EncodeToString}, {PartEvents, bucketEvents, hex.EncodeToString},
		} {
			err := tx.Bucket(part.bucket).ForEach(func(key, value []byte) error {
				return yield(Change{Place{Part: part.part, Key: part.written(key)}, value})
			})
			if err != nil {
				return err
			}
		}
		return tx.Bucket(bucketStatuses).ForEachBucket(func(node []byte) error {
			return tx.Bucket(bucketStatuses).Bucket(node).ForEach(func(uid, value []byte) error {
				return yield(Change{Place{PartStatuses, string(node), string(uid)}, value})
			})
		})
	})
}

func asText(key []byte) string { return string(key) }

// Decisions implements Backend.
func (f *file) Decisions(context.Context) (out []nodes.Decision, err error) {
	err = f.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketDecisions).ForEachBucket(func(kind []byte) error {
			return tx.Bucket(bucketDecisions).Bucket(kind).ForEach(func(key, value []byte) error {
				out = append(out, nodes.Decision{
					Kind: string(kind), Key: string(key), Value: append(json.RawMessage(nil), value...),
				})
				return nil
			})
		})
	})
	return out, err
}

// Write implements Backend.
func (f *file) Write(_ context.Context, changes []Change) error {
	return f.db.Update(func(tx *bbolt.Tx) error {
		for _, c := range changes {
			if err := write(tx, c); err != nil {
				return fmt.Errorf("%s %s %s: %w", c.Part, c.Of, c.Key, err)
			}
		}
		return nil
	})
}

func write(tx *bbolt.Tx, c Change) error {
	bucket, key := tx.Bucket([]byte(c.Part)), []byte(c.Key)
	if c.Of != "" {
		inner := bucket.Bucket([]byte(c.Of))
		if inner == nil && c.Value == nil {
			return nil
		}
		if inner == nil {
			made, err := bucket.CreateBucket([]byte(c.Of))
			if err != nil {
				return err
			}
			inner = made
		}
		bucket = inner
	}
	if c.Part == PartHistory || c.Part == PartEvents {
		raw, err := hex.DecodeString(c.Key)
		if err != nil {
			return err
		}
		key = raw
	}
	if c.Value == nil {
		return bucket.Delete(key)
	}
	return bucket.Put(key, c.Value)
}
