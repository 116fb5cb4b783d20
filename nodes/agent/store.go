package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/crypto/nacl/secretbox"
)

// schema is the version of what the store holds.
const schema = "1"

// Buckets of the store. Values are encrypted, except in metaBucket.
const (
	metaBucket     = "agent-meta"
	podBucket      = "agent-pods"      // uid → storedPod
	templateBucket = "agent-templates" // workload and hash → nodes.Template
	configBucket   = "agent-configs"   // key → nodes.Config
	memoryBucket   = "agent-memory"    // uid → Memory
	ledgerBucket   = "agent-ledger"    // kind and key → nodes.Decision
	routeBucket    = "agent-routes"    // "table" → proxy.Table
	volumeBucket   = "agent-volumes"   // name and uid → nodes.Volume
)

var buckets = [...]string{metaBucket, podBucket, templateBucket, configBucket, memoryBucket, ledgerBucket, routeBucket, volumeBucket}

// OpenStore opens the agent's own file. One that cannot be read is set aside
// as path.corrupt-<time>, and an empty one takes its place: the agent then
// learns from the containers' labels what it runs, and touches none of them
// before a server has told what should run. The returned error, if any, means
// that there is no store at all.
func OpenStore(path string) (*bbolt.DB, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("open agent store: %w", err)
	}
	db, err := openChecked(path)
	if err == nil {
		return db, nil
	}
	if errors.Is(err, bbolt.ErrTimeout) {
		return nil, fmt.Errorf("open agent store %s: another agent holds it", path)
	}
	if _, ok := errors.AsType[*os.PathError](err); ok {
		return nil, fmt.Errorf("open agent store: %w", err)
	}
	aside := fmt.Sprintf("%s.corrupt-%d", path, time.Now().Unix())
	if err := os.Rename(path, aside); err != nil {
		return nil, fmt.Errorf("set corrupt agent store aside: %w", err)
	}
	db, again := openChecked(path)
	if again != nil {
		return nil, fmt.Errorf("open new agent store: %w", again)
	}
	note := fmt.Sprintf("the agent's store was corrupt (%s) and was set aside as %s", err, aside)
	return db, db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte(metaBucket)).Put([]byte("set-aside"), []byte(note))
	})
}

// openChecked opens the file and reads all of it once. Damage is an error,
// whichever way bbolt or the memory that the file is mapped to reports it.
func openChecked(path string) (db *bbolt.DB, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("damaged pages: %v", p)
		}
		if err != nil && db != nil {
			closeQuietly(db)
			db = nil
		}
	}()
	db, err = bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout: 5 * time.Second,
		// The list of free pages is kept in the file. Without it, bbolt looks for
		// them in a goroutine of its own, where a damaged page ends the process.
		// Tx.Check has such goroutines, too.
		NoFreelistSync: false, FreelistType: bbolt.FreelistMapType,
	})
	if err != nil {
		return nil, err
	}
	if err := db.View(readAll); err != nil {
		return db, err
	}
	return db, db.Update(makeBuckets)
}

// closeQuietly closes a file that may be too damaged to close.
func closeQuietly(db *bbolt.DB) {
	defer func() { _ = recover() }()
	_ = db.Close() // the first error is the one that counts
}

// readAll touches every page that is in use.
func readAll(tx *bbolt.Tx) error {
	return tx.ForEach(func(_ []byte, b *bbolt.Bucket) error { return readBucket(b) })
}

func readBucket(b *bbolt.Bucket) error {
	return b.ForEach(func(key, value []byte) error {
		if value == nil {
			return readBucket(b.Bucket(key))
		}
		_ = bytes.Clone(value)
		return nil
	})
}

func makeBuckets(tx *bbolt.Tx) error {
	for _, name := range buckets {
		if _, err := tx.CreateBucketIfNotExists([]byte(name)); err != nil {
			return err
		}
	}
	meta := tx.Bucket([]byte(metaBucket))
	if v := meta.Get([]byte("schema")); v != nil && string(v) != schema {
		return fmt.Errorf("schema %s is not ours (%s)", v, schema)
	}
	return meta.Put([]byte("schema"), []byte(schema))
}

// store encrypts and groups writes: put returns at once, run commits all that
// came together in one transaction.
type store struct {
	db  *bbolt.DB
	key *[32]byte
	log *slog.Logger

	// together is held, before mu, while entries are put that make sense only
	// together: they are committed in one transaction.
	together sync.Mutex
	// guarded by mu
	mu sync.Mutex
	// unreadable are the entries that load left out.
	unreadable []entry
	pending    map[entry][]byte
	writing    map[entry][]byte // by the flush under way, or by one that failed at the end
	wake       chan struct{}
}

type entry struct{ bucket, key string }

// group is how long a write waits for others.
const group = 20 * time.Millisecond

func newStore(db *bbolt.DB, key []byte, log *slog.Logger) (*store, error) {
	if len(key) != 32 {
		return nil, fmt.Errorf("the key has %d bytes, want 32", len(key))
	}
	if err := db.Update(makeBuckets); err != nil {
		return nil, fmt.Errorf("prepare agent store: %w", err)
	}
	return &store{db: db, key: (*[32]byte)(bytes.Clone(key)), log: log, pending: map[entry][]byte{}, wake: make(chan struct{}, 1)}, nil
}

// put writes soon; a nil value deletes.
func (s *store) put(bucket, key string, value []byte) {
	s.mu.Lock()
	s.pending[entry{bucket, key}] = value
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// putJSON is put for a value. It returns the value's size.
func (s *store) putJSON(bucket, key string, value any) int {
	data, err := json.Marshal(value)
	if err != nil {
		s.log.Error("encode for the agent's store", "bucket", bucket, "key", key, "err", err)
		return 0
	}
	s.put(bucket, key, data)
	return len(data)
}

// written reports whether all that was put under a key is on the disk.
func (s *store) written(bucket, key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := entry{bucket, key}
	_, pending := s.pending[e]
	_, writing := s.writing[e]
	return !pending && !writing
}

// settle waits until all that was put under a key is on the disk, or ctx ends.
func (s *store) settle(ctx context.Context, bucket, key string) {
	for !s.written(bucket, key) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(group):
		}
	}
}

// flushAgain is how long what could not be written waits, for room on the
// disk, say.
const flushAgain = 2 * time.Second

// run commits until ctx ends, and then what is left.
func (s *store) run(ctx context.Context) {
	wait := group
	for {
		select {
		case <-ctx.Done():
			s.flush(ctx)
			return
		case <-s.wake:
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = group
		if !s.flush(ctx) {
			wait = flushAgain
		}
	}
}

// flush writes what is pending. What cannot be written stays pending, and
// flush reports false.
func (s *store) flush(ctx context.Context) bool {
	s.together.Lock()
	s.mu.Lock()
	batch := s.pending
	s.pending, s.writing = map[entry][]byte{}, batch
	s.mu.Unlock()
	s.together.Unlock()
	if len(batch) == 0 {
		return true
	}
	err := s.db.Update(func(tx *bbolt.Tx) error {
		for e, value := range batch {
			if err := s.write(tx.Bucket([]byte(e.bucket)), e.key, value); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		s.mu.Lock()
		s.writing = nil
		s.mu.Unlock()
		return true
	}
	s.log.Error("write the agent's store; until that works it is stale", "entries", len(batch), "err", err)
	if ctx.Err() == nil {
		s.putBack(batch)
	}
	return false
}

// putBack makes entries pending again, unless newer ones are.
func (s *store) putBack(batch map[entry][]byte) {
	s.mu.Lock()
	maps.Copy(batch, s.pending)
	s.pending, s.writing = batch, nil
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *store) write(b *bbolt.Bucket, key string, value []byte) error {
	if b == nil {
		return bbolterrors.ErrBucketNotFound
	}
	if value == nil {
		return b.Delete([]byte(key))
	}
	sealed, err := s.seal(value)
	if err != nil {
		return err
	}
	return b.Put([]byte(key), sealed)
}

const nonceSize = 24

func (s *store) seal(plain []byte) ([]byte, error) {
	var nonce [nonceSize]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		return nil, err
	}
	return secretbox.Seal(nonce[:], plain, &nonce, s.key), nil
}

var errSealed = errors.New("not encrypted with this node's key")

func (s *store) unseal(sealed []byte) ([]byte, error) {
	if len(sealed) < nonceSize {
		return nil, errSealed
	}
	plain, ok := secretbox.Open(nil, sealed[nonceSize:], (*[nonceSize]byte)(sealed), s.key)
	if !ok {
		return nil, errSealed
	}
	return plain, nil
}

// each calls f with every readable value of a bucket. Unreadable ones are said,
// left out, and noted in unreadable.
func (s *store) each(bucket string, f func(key string, value []byte) error) error {
	return s.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte(bucket)).ForEach(func(k, v []byte) error {
			plain, err := s.unseal(v)
			if err == nil {
				err = f(string(k), plain)
			}
			if err != nil {
				s.mu.Lock()
				s.unreadable = append(s.unreadable, entry{bucket, string(k)})
				s.mu.Unlock()
				s.log.Error("an entry of the agent's store is unreadable and was left out", "bucket", bucket, "key", string(k), "err", err)
			}
			return nil
		})
	})
}

// forgetUnreadable removes the entries that load left out.
func (s *store) forgetUnreadable() {
	s.mu.Lock()
	lost := s.unreadable
	s.unreadable = nil
	s.mu.Unlock()
	for _, e := range lost {
		s.put(e.bucket, e.key, nil)
	}
}

// lost is how many entries load has left out.
func (s *store) lost() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.unreadable)
}

// note returns, once, what OpenStore has to say.
func (s *store) note() string {
	var text string
	err := s.db.Update(func(tx *bbolt.Tx) error {
		meta := tx.Bucket([]byte(metaBucket))
		text = string(meta.Get([]byte("set-aside")))
		return meta.Delete([]byte("set-aside"))
	})
	if err != nil {
		s.log.Error("read the agent's store", "err", err)
	}
	return text
}

// clear forgets everything.
func (s *store) clear() error {
	err := s.db.Update(func(tx *bbolt.Tx) error {
		for _, name := range buckets {
			if err := tx.DeleteBucket([]byte(name)); err != nil {
				return err
			}
		}
		return makeBuckets(tx)
	})
	if err != nil {
		return fmt.Errorf("clear agent store: %w", err)
	}
	return nil
}
