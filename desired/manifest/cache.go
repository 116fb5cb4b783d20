package manifest

import (
	"container/list"
	"crypto/sha256"
	"encoding/hex"
	"sync"
)

// cache remembers values by key, up to a sum of costs; what was used longest
// ago goes first. Safe for concurrent use.
type cache struct {
	budget int

	mu    sync.Mutex
	spent int                      // guarded by mu
	order *list.List               // guarded by mu; front is the latest
	items map[string]*list.Element // guarded by mu
}

type cached struct {
	key   string
	value any
	cost  int
}

func newCache(budget int) *cache {
	return &cache{budget: budget, order: list.New(), items: map[string]*list.Element{}}
}

// get returns nil for an unknown key.
func (c *cache) get(key string) any {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.items[key]
	if !ok {
		return nil
	}
	c.order.MoveToFront(e)
	return e.Value.(*cached).value
}

// put remembers value, which must never change again.
func (c *cache) put(key string, value any, cost int) {
	cost += 1024 + len(key) // an empty file is not free
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.items[key]; ok {
		c.drop(e)
	}
	c.items[key] = c.order.PushFront(&cached{key: key, value: value, cost: cost})
	c.spent += cost
	for c.spent > c.budget && c.order.Len() > 0 {
		c.drop(c.order.Back())
	}
}

// drop needs mu.
func (c *cache) drop(e *list.Element) {
	item := c.order.Remove(e).(*cached)
	delete(c.items, item.key)
	c.spent -= item.cost
}

func contentHash(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
