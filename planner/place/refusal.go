package place

import (
	"fmt"
	"slices"
	"strings"
)

// refusal is why one node doesn't fit. Nodes that share a key are counted
// together; free compares what they could give.
type refusal struct {
	key, text string
	free      int64
	detail    string
}

type refusals struct {
	total int
	kinds []*counted
}

type counted struct {
	refusal
	count int
}

func newRefusals(total int) *refusals { return &refusals{total: total} }

func (r *refusals) add(why refusal) {
	for _, k := range r.kinds {
		if k.key == why.key {
			k.count++
			if why.free > k.free {
				k.refusal = why
			}
			return
		}
	}
	r.kinds = append(r.kinds, &counted{refusal: why, count: 1})
}

// String gives "0/5 nodes fit: 3 lack cpu (want 2, most free 1.5), 2 have taint gpu=true:NoSchedule".
func (r *refusals) String() string {
	slices.SortStableFunc(r.kinds, func(a, b *counted) int {
		if a.count != b.count {
			return b.count - a.count
		}
		return strings.Compare(a.key, b.key)
	})
	parts := make([]string, len(r.kinds))
	for i, k := range r.kinds {
		parts[i] = fmt.Sprintf("%d %s%s", k.count, inflect(k.text, k.count), k.detail)
	}
	return fmt.Sprintf("0/%d nodes fit: %s", r.total, strings.Join(parts, ", "))
}

// inflect turns "lacks cpu" into "lack cpu" for several nodes.
func inflect(text string, count int) string {
	if count == 1 {
		return text
	}
	verb, rest, _ := strings.Cut(text, " ")
	switch verb {
	case "is":
		verb = "are"
	case "has":
		verb = "have"
	case "does":
		verb = "do"
	default:
		verb = strings.TrimSuffix(verb, "s")
	}
	if rest == "" {
		return verb
	}
	return verb + " " + rest
}
