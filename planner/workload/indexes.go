package workload

import (
	"strconv"
	"strings"
)

// Indexes is a set of numbers ≥ 0 as ordered intervals that neither overlap
// nor touch. The zero value is the empty set. Immutable: every method gives a
// new value.
type Indexes []interval

type interval struct{ first, last int }

// ParseIndexes reads the form that String writes, "1,3-5"; numbers from limit
// on are left out, and so is what can't be read.
func ParseIndexes(text string, limit int) Indexes {
	var x Indexes
	for part := range strings.SplitSeq(text, ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		first, err1 := strconv.Atoi(from)
		last, err2 := strconv.Atoi(to)
		if err1 != nil || err2 != nil || first < 0 || last < first || first >= limit {
			continue
		}
		x = x.join(interval{first, min(last, limit-1)})
	}
	return x
}

// With adds one number.
func (x Indexes) With(n int) Indexes { return x.join(interval{n, n}) }

func (x Indexes) join(n interval) Indexes {
	out := make(Indexes, 0, len(x)+1)
	i := 0
	for ; i < len(x) && x[i].last+1 < n.first; i++ {
		out = append(out, x[i])
	}
	for ; i < len(x) && x[i].first <= n.last+1; i++ {
		n = interval{min(n.first, x[i].first), max(n.last, x[i].last)}
	}
	return append(append(out, n), x[i:]...)
}

// Union has the numbers of both.
func (x Indexes) Union(y Indexes) Indexes {
	for _, v := range y {
		x = x.join(v)
	}
	return x
}

// Has reports whether n is among them.
func (x Indexes) Has(n int) bool {
	for _, v := range x {
		if n <= v.last {
			return n >= v.first
		}
	}
	return false
}

// Len counts the numbers.
func (x Indexes) Len() int {
	n := 0
	for _, v := range x {
		n += v.last - v.first + 1
	}
	return n
}

// Common counts the numbers that are in both.
func (x Indexes) Common(y Indexes) int {
	n, i, j := 0, 0, 0
	for i < len(x) && j < len(y) {
		n += max(0, min(x[i].last, y[j].last)-max(x[i].first, y[j].first)+1)
		if x[i].last < y[j].last {
			i++
		} else {
			j++
		}
	}
	return n
}

// Missing gives the first n numbers below limit that are not among them.
func (x Indexes) Missing(n, limit int) []int {
	var out []int
	next := 0
	for _, v := range append(x[:len(x):len(x)], interval{limit, limit}) {
		for ; next < min(v.first, limit) && len(out) < n; next++ {
			out = append(out, next)
		}
		next = max(next, v.last+1)
	}
	return out
}

// Max is the greatest number, -1 for the empty set.
func (x Indexes) Max() int {
	if len(x) == 0 {
		return -1
	}
	return x[len(x)-1].last
}

// String writes the set as Kubernetes writes a Job's completedIndexes:
// "1,3-5,7"; two neighbours are "1,2".
func (x Indexes) String() string {
	var parts []string
	for _, v := range x {
		switch v.last - v.first {
		case 0:
			parts = append(parts, strconv.Itoa(v.first))
		case 1:
			parts = append(parts, strconv.Itoa(v.first), strconv.Itoa(v.last))
		default:
			parts = append(parts, strconv.Itoa(v.first)+"-"+strconv.Itoa(v.last))
		}
	}
	return strings.Join(parts, ",")
}
