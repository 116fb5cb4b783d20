package place

import "strings"

// topology is the domains of one topology key.
type topology struct {
	key string
	// of is each node's domain; -1 for a node without the label.
	of   []int32
	size int
	// gaps is set when there are nodes without the label.
	gaps bool
	// wide topologies have many domains: classes go by what a domain counts. In
	// the others they go by the domain.
	wide bool
	// first and list hold the nodes of each domain, of a wide topology only.
	first, list []int32
}

// maxNarrow is how many domains are told apart by name.
const maxNarrow = 32

func (f *Field) topology(key string) *topology {
	if t := f.topologies[key]; t != nil {
		return t
	}
	t := &topology{key: key, of: make([]int32, len(f.nodes))}
	ids := map[string]int32{}
	for i, n := range f.nodes {
		value, has := n.kube.Labels[key]
		if !has {
			t.of[i], t.gaps = -1, true
			continue
		}
		id, known := ids[value]
		if !known {
			id = int32(len(ids))
			ids[value] = id
		}
		t.of[i] = id
	}
	t.size = len(ids)
	if t.wide = t.size > maxNarrow; t.wide {
		t.sort()
	}
	f.topologies[key] = t
	return t
}

// sort lists the nodes by domain.
func (t *topology) sort() {
	t.first = make([]int32, t.size+1)
	for _, d := range t.of {
		if d >= 0 {
			t.first[d+1]++
		}
	}
	for d := range t.size {
		t.first[d+1] += t.first[d]
	}
	t.list = make([]int32, t.first[t.size])
	next := append([]int32(nil), t.first...)
	for i, d := range t.of {
		if d >= 0 {
			t.list[next[d]] = int32(i)
			next[d]++
		}
	}
}

func (t *topology) members(d int32) []int32 { return t.list[t.first[d]:t.first[d+1]] }

// tuple numbers the combinations of domains in several narrow topologies.
type tuple struct {
	of   []int32
	size int
}

func (f *Field) tuple(topologies []*topology) *tuple {
	var names strings.Builder
	for _, t := range topologies {
		names.WriteString(t.key + "\n")
	}
	if t := f.tuples[names.String()]; t != nil {
		return t
	}
	t := &tuple{of: make([]int32, len(f.nodes)), size: 1}
	for _, part := range topologies {
		ids := map[[2]int32]int32{}
		for i := range t.of {
			pair := [2]int32{t.of[i], part.of[i]}
			id, known := ids[pair]
			if !known {
				id = int32(len(ids))
				ids[pair] = id
			}
			t.of[i] = id
		}
		t.size = len(ids)
	}
	f.tuples[names.String()] = t
	return t
}
