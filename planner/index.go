package planner

import (
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/benbjohnson/immutable"

	"github.com/tallyman-dev/tallyman/desired"
)

// pair is one label within one namespace.
type pair struct{ namespace, key, value string }

// labelIndex finds objects by a label without looking at all of them.
type labelIndex struct {
	pairs *immutable.Map[pair, *immutable.SortedMap[desired.Key, struct{}]]
}

func newLabelIndex() labelIndex {
	return labelIndex{immutable.NewMap[pair, *immutable.SortedMap[desired.Key, struct{}]](hasher[pair](func(p pair) uint32 {
		return hashText(p.namespace)*31*31 + hashText(p.key)*31 + hashText(p.value)
	}))}
}

func (x *labelIndex) add(p pair, k desired.Key) {
	bucket, ok := x.pairs.Get(p)
	if !ok {
		bucket = immutable.NewSortedMap[desired.Key, struct{}](comparer[desired.Key](desired.Key.Compare))
	}
	if _, there := bucket.Get(k); !there {
		x.pairs = x.pairs.Set(p, bucket.Set(k, struct{}{}))
	}
}

func (x *labelIndex) remove(p pair, k desired.Key) {
	bucket, ok := x.pairs.Get(p)
	if !ok {
		return
	}
	if bucket = bucket.Delete(k); bucket.Len() == 0 {
		x.pairs = x.pairs.Delete(p)
	} else {
		x.pairs = x.pairs.Set(p, bucket)
	}
}

func (x *labelIndex) size(p pair) int {
	if bucket, ok := x.pairs.Get(p); ok {
		return bucket.Len()
	}
	return 0
}

func (x *labelIndex) all(p pair) iter.Seq[desired.Key] {
	return func(yield func(desired.Key) bool) {
		if bucket, ok := x.pairs.Get(p); ok {
			for k := range keys(bucket) {
				if !yield(k) {
					return
				}
			}
		}
	}
}

// rarest picks the pair of a selector that the fewest objects share.
func (x *labelIndex) rarest(namespace string, selector map[string]string) pair {
	var best pair
	least := -1
	for _, k := range slices.Sorted(maps.Keys(selector)) {
		p := pair{namespace, k, selector[k]}
		if n := x.size(p); least < 0 || n < least {
			best, least = p, n
		}
	}
	return best
}

// contains reports whether labels satisfy an equality selector.
func contains(labels, selector map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

func keys[K, V any](m *immutable.SortedMap[K, V]) iter.Seq[K] {
	return func(yield func(K) bool) {
		for k := range entries(m) {
			if !yield(k) {
				return
			}
		}
	}
}

func entries[K, V any](m *immutable.SortedMap[K, V]) iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for it := m.Iterator(); !it.Done(); {
			if k, v, ok := it.Next(); ok && !yield(k, v) {
				return
			}
		}
	}
}

// comparer and hasher lend plain functions to the immutable maps. The hash is
// the same in every process: no order may depend on chance.
type comparer[K any] func(a, b K) int

func (c comparer[K]) Compare(a, b K) int { return c(a, b) }

type hasher[K comparable] func(K) uint32

func (h hasher[K]) Hash(k K) uint32   { return h(k) }
func (h hasher[K]) Equal(a, b K) bool { return a == b }

func hashKey(k desired.Key) uint32 {
	return hashText(k.Name)*31*31 + hashText(k.Namespace)*31 + hashText(k.Kind)
}

// hashText is FNV-1a.
func hashText(s string) uint32 {
	h := uint32(2166136261)
	for i := range len(s) {
		h = (h ^ uint32(s[i])) * 16777619
	}
	return h
}

// keyText is a key as one string, for the record.
func keyText(k desired.Key) string {
	return strings.Join([]string{k.Group, k.Kind, k.Namespace, k.Name}, "/")
}
