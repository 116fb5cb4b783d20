package place

import (
	"fmt"
	"math"
)

// meaning is what a counter counts.
type meaning int

const (
	attracting meaning = iota // pods that all required affinity terms are about
	repelling                 // pods that an anti-affinity term is about
	forbidding                // pods whose anti-affinity is about this one
	spreading                 // pods of a spread that must hold
	crowding                  // pods of a spread that need not
	leaning                   // weights of preferences, of either side
)

// counter counts pods by the domains of one topology.
type counter struct {
	*topology
	meaning
	// rule is that of a spread, self whether the pod counts in it.
	rule *constraint
	self int
	// promised counters count pods that were promised a place, too; twin is the
	// index of the one that does so beside this one, 0 for none.
	promised bool
	twin     int
	// counted are the nodes whose pods count; nil for all.
	counted []bool
	counts  []int64
	// histogram has how many domains count how much, of a spread that must hold;
	// least is the least count, of all its domains.
	histogram []int32
	least     int
	domains   int
	// weight of a spread that need not hold.
	weight float64
}

func (c *counter) domain(node int32) int32 {
	if c.counted != nil && !c.counted[node] {
		return -1
	}
	return c.of[node]
}

// add counts a pod on a node.
func (c *counter) add(node int32, delta int64) {
	d := c.domain(node)
	if d < 0 {
		return
	}
	was := c.counts[d]
	c.counts[d] += delta
	if c.histogram == nil {
		return
	}
	is := int(c.counts[d])
	c.histogram[was]--
	for len(c.histogram) <= is {
		c.histogram = append(c.histogram, 0)
	}
	c.histogram[is]++
	c.least = min(c.least, is)
	for c.least < len(c.histogram)-1 && c.histogram[c.least] == 0 {
		c.least++
	}
}

// settle makes the histogram once all pods that are there have been counted.
func (c *counter) settle() {
	there := make([]bool, c.size)
	for i := range c.of {
		if d := c.domain(int32(i)); d >= 0 {
			there[d] = true
		}
	}
	c.histogram, c.least = make([]int32, 1), math.MaxInt
	for d, is := range there {
		if !is {
			continue
		}
		c.domains++
		n := int(c.counts[d])
		for len(c.histogram) <= n {
			c.histogram = append(c.histogram, 0)
		}
		c.histogram[n]++
		c.least = min(c.least, n)
	}
	if c.domains == 0 {
		c.least = 0
	}
}

// minimum is what a spread compares with.
func (c *counter) minimum() int {
	if c.domains < c.rule.minDomains {
		return 0
	}
	return c.least
}

// blocks reports whether a node in a domain that counts so many is refused; has
// is false for a node without the label.
func (c *counter) blocks(count int64, has, alone bool) bool {
	switch c.meaning {
	case attracting:
		return !has || count <= 0 && !alone
	case repelling, forbidding:
		return has && count > 0
	case spreading:
		return !has || int(count)+c.self-c.minimum() > c.rule.skew
	}
	return false
}

func (c *counter) why(has bool) refusal {
	switch {
	case c.meaning == attracting:
		return refusal{key: "affinity", text: "has no pod that the pod affinity asks for"}
	case c.promised && c.meaning < spreading:
		return refusal{key: "promise", text: "keeps room for a pod that is to be apart from this one"}
	case c.meaning == repelling:
		return refusal{key: "anti-affinity", text: "has a pod that the pod anti-affinity keeps away from"}
	case c.meaning == forbidding:
		return refusal{key: "anti-affinity of others", text: "has a pod whose anti-affinity keeps this one away"}
	case !has:
		return refusal{key: "no topology " + c.key, text: "lacks the label " + c.key + " to spread over"}
	}
	return refusal{key: "spread " + c.key, text: fmt.Sprintf("has too many of these pods to spread over %s (maxSkew %d)", c.key, c.rule.skew)}
}
