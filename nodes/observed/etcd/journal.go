package etcd

import (
	"context"
	"encoding/json"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/tallyman-dev/tallyman/nodes/observed"
)

const (
	keyJournal = "journal"
	keyParts   = "parts"
)

// journal says that the parts below its name are in force, although not every
// change of theirs stands in its place yet. There is at most one at a time.
type journal struct {
	Name  string `json:"name"`
	Parts int    `json:"parts"`
}

// line is a change as it is written in a part.
type line struct {
	Part  observed.Part   `json:"p"`
	Of    string          `json:"o,omitempty"`
	Key   string          `json:"k"`
	Value json.RawMessage `json:"v,omitempty"` // none deletes
}

// enter writes more changes than one transaction takes. The parts come first,
// and mean nothing by themselves; the last transaction brings the journal that
// puts all of them in force at once. The changes move to their places before
// the next write.
func (r *record) enter(ctx context.Context, changes []observed.Change) error {
	c := r.term.client
	parts, err := encodeParts(changes)
	if err != nil {
		return err
	}
	j := &journal{Name: fmt.Sprintf("%d-%d", r.term.revision, r.writes), Parts: len(parts)}
	for i, part := range parts {
		ops := []clientv3.Op{clientv3.OpPut(c.key(keyParts, j.Name, fmt.Sprintf("%08d", i)), string(part))}
		if i == len(parts)-1 {
			value, err := json.Marshal(j)
			if err != nil {
				return err
			}
			ops = append(ops, clientv3.OpPut(c.key(keyJournal), string(value)))
		}
		if err := r.commit(ctx, ops); err != nil {
			return err
		}
	}
	r.journal = j
	return nil
}

// encodeParts divides changes so that each part fits into a request.
func encodeParts(changes []observed.Change) (parts [][]byte, err error) {
	var part []byte
	for _, c := range changes {
		encoded, err := json.Marshal(line{c.Part, c.Of, c.Key, c.Value})
		if err != nil {
			return nil, fmt.Errorf("encode %s %s %s: %w", c.Part, c.Of, c.Key, err)
		}
		if len(part) > 0 && len(part)+len(encoded)+2 > maxBytes {
			parts, part = append(parts, append(part, ']')), nil
		}
		separator := byte(',')
		if len(part) == 0 {
			separator = '['
		}
		part = append(append(part, separator), encoded...)
	}
	return append(parts, append(part, ']')), nil
}

// settle moves what is in force by the journal to its places, and strikes the
// journal. After a crash in the middle it is done again, by whoever leads then.
func (r *record) settle(ctx context.Context) error {
	if r.journal == nil {
		return nil
	}
	changes, err := r.readParts(ctx)
	if err != nil {
		return err
	}
	for len(changes) > 0 {
		n, bytes := 0, 0
		for n < min(len(changes), maxOps) && (n == 0 || bytes+sizeOf(changes[n]) <= maxBytes) {
			bytes += sizeOf(changes[n])
			n++
		}
		if err := r.commit(ctx, r.ops(changes[:n])); err != nil {
			return err
		}
		changes = changes[n:]
	}
	c := r.term.client
	// With it goes what a write that came to nothing has left.
	err = r.commit(ctx, []clientv3.Op{clientv3.OpDelete(c.key(keyJournal)), clientv3.OpDelete(c.key(keyParts)+"/", clientv3.WithPrefix())})
	if err != nil {
		return err
	}
	r.journal = nil
	return nil
}

func (r *record) readParts(ctx context.Context) (changes []observed.Change, err error) {
	c := r.term.client
	for i := range r.journal.Parts {
		key := c.key(keyParts, r.journal.Name, fmt.Sprintf("%08d", i))
		answer, err := c.read(ctx, clientv3.OpGet(key))
		if err != nil {
			return nil, err
		}
		value, found := valueOf(answer, 0)
		if !found {
			return nil, fmt.Errorf("%s in etcd is missing: it was removed by another hand; restore etcd from a backup, or remove everything below the prefix (the nodes fill the record again)", key)
		}
		var lines []line
		if err := json.Unmarshal([]byte(value), &lines); err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
		for _, l := range lines {
			changes = append(changes, observed.Change{Place: observed.Place{Part: l.Part, Of: l.Of, Key: l.Key}, Value: l.Value})
		}
	}
	return changes, nil
}
