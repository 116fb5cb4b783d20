package gitrepo

import (
	"container/list"
	"sync"
)

// lru keeps the values used last within a budget of bytes. Safe for concurrent
// use. Values are shared: nobody may change one that was put in.
type lru[K comparable, V any] struct {
	budget int64

	mu    sync.Mutex
	used  int64               // guarded by mu
	order *list.List          // guarded by mu; the front was used last
	byKey map[K]*list.Element // guarded by mu
}

type lruEntry[K comparable, V any] struct {
	key   K
	value V
	size  int64
}

func newLRU[K comparable, V any](budget int64) *lru[K, V] {
	return &lru[K, V]{budget: budget, order: list.New(), byKey: map[K]*list.Element{}}
}

func (l *lru[K, V]) get(key K) (V, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	element, found := l.byKey[key]
	if !found {
		var none V
		return none, false
	}
	l.order.MoveToFront(element)
	return element.Value.(*lruEntry[K, V]).value, true
}

// overhead is what an entry takes besides its value: list element, map slot.
const overhead = 128

// fits reports whether put keeps a value of this size: not if it alone takes
// more than a quarter of the budget, so that one huge file does not push out
// everything else.
func (l *lru[K, V]) fits(size int64) bool { return size+overhead <= l.budget/4 }

// put keeps value if its size, in bytes, fits.
func (l *lru[K, V]) put(key K, value V, size int64) {
	if !l.fits(size) {
		return
	}
	size += overhead
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, found := l.byKey[key]; found {
		return
	}
	l.byKey[key] = l.order.PushFront(&lruEntry[K, V]{key: key, value: value, size: size})
	l.used += size
	for l.used > l.budget {
		oldest := l.order.Back()
		entry := l.order.Remove(oldest).(*lruEntry[K, V])
		delete(l.byKey, entry.key)
		l.used -= entry.size
	}
}
