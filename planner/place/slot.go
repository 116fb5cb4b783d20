package place

// slot is what a search asks of every node, in few bytes: a pod of a large
// cluster's looks at thousands.
type slot struct {
	free, can felt
	felt      felt
	storage   int64
	pods      int64
	// open nodes have nothing that keeps pods away but what they select.
	open bool
	// number is the node's.
	number int32
}

func (n *Node) slot() slot {
	s := slot{
		free:    felt{n.can.cpu - n.used.cpu, n.can.memory - n.used.memory},
		can:     felt{n.can.cpu, n.can.memory},
		felt:    n.felt,
		storage: n.can.storage - n.used.storage,
		pods:    n.can.pods - n.used.pods,
		number:  n.number,
		open:    n.refuses == "" && len(n.kube.Spec.Taints) == 0,
	}
	if n.can.pods == 0 {
		s.pods = 1 // it sets no limit
	}
	return s
}

// simple reports whether a slot has all that is to be known of a node's room.
func (a *asks) simple() bool { return len(a.ports)+len(a.needs.other) == 0 }

// has reports whether there is room for what a simple pod requests.
func (s *slot) has(a *asks) bool {
	return s.pods >= a.needs.pods &&
		(a.needs.cpu <= 0 || s.free.cpu >= a.needs.cpu) &&
		(a.needs.memory <= 0 || s.free.memory >= a.needs.memory) &&
		(a.needs.storage <= 0 || s.storage >= a.needs.storage)
}
