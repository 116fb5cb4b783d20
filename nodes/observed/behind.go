package observed

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"

	"go.etcd.io/bbolt"
)

// behind is what waits to be written: the newest value a place, nil to delete it.
type behind struct {
	nodes    map[string]any
	statuses map[statusKey]any
	history  map[uint64]any
	events   map[eventKey]any
}

type statusKey struct{ node, uid string }

func (b *behind) init() {
	*b = behind{
		nodes:    map[string]any{},
		statuses: map[statusKey]any{},
		history:  map[uint64]any{},
		events:   map[eventKey]any{},
	}
}

func (b *behind) empty() bool {
	return len(b.nodes)+len(b.statuses)+len(b.history)+len(b.events) == 0
}

func (b *behind) take() behind {
	taken := *b
	b.init()
	return taken
}

// putBack returns what could not be written, below what came since.
func (b *behind) putBack(old behind) {
	newer := b.take()
	*b = old
	maps.Copy(b.nodes, newer.nodes)
	maps.Copy(b.statuses, newer.statuses)
	maps.Copy(b.history, newer.history)
	maps.Copy(b.events, newer.events)
}

// write is one transaction's work.
func (b *behind) write(tx *bbolt.Tx) error {
	for name, value := range b.nodes {
		if err := put(tx.Bucket(bucketNodes), []byte(name), value); err != nil {
			return err
		}
	}
	for key, value := range b.statuses {
		node, err := tx.Bucket(bucketStatuses).CreateBucketIfNotExists([]byte(key.node))
		if err != nil {
			return fmt.Errorf("statuses of node %s: %w", key.node, err)
		}
		if err := put(node, []byte(key.uid), value); err != nil {
			return err
		}
	}
	for id, value := range b.history {
		if err := put(tx.Bucket(bucketHistory), binary.BigEndian.AppendUint64(nil, id), value); err != nil {
			return err
		}
	}
	for key, value := range b.events {
		if err := put(tx.Bucket(bucketEvents), key[:], value); err != nil {
			return err
		}
	}
	return nil
}

func put(bucket *bbolt.Bucket, key []byte, value any) error {
	if value == nil {
		return bucket.Delete(key)
	}
	encoded, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("encode %q: %w", key, err)
	}
	return bucket.Put(key, encoded)
}
