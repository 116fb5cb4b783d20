package place

// enter puts a node into its class's heap when it has room.
func (s *search) enter(i int32) {
	if !s.roomy(i) {
		return
	}
	c := s.classes[s.home[i]]
	c.heap = append(c.heap, candidate{s.field.strategy.room(s.Request, &s.field.slots[i]), i})
	k := len(c.heap) - 1
	s.spot[i] = int32(k)
	s.rise(c, k)
}

// leave takes a node out of its class's heap.
func (s *search) leave(i int32) {
	k := int(s.spot[i])
	if k < 0 {
		return
	}
	c := s.classes[s.home[i]]
	last := len(c.heap) - 1
	s.swap(c, k, last)
	c.heap = c.heap[:last]
	s.spot[i] = -1
	if k < last {
		s.sink(c, k)
		s.rise(c, k)
	}
}

func (s *search) swap(c *class, a, b int) {
	c.heap[a], c.heap[b] = c.heap[b], c.heap[a]
	s.spot[c.heap[a].node], s.spot[c.heap[b].node] = int32(a), int32(b)
}

func (s *search) rise(c *class, k int) {
	for k > 0 {
		up := (k - 1) / 2
		if !c.heap[k].before(c.heap[up]) {
			return
		}
		s.swap(c, k, up)
		k = up
	}
}

func (s *search) sink(c *class, k int) {
	for {
		first := k
		for child := 2*k + 1; child <= 2*k+2 && child < len(c.heap); child++ {
			if c.heap[child].before(c.heap[first]) {
				first = child
			}
		}
		if first == k {
			return
		}
		s.swap(c, k, first)
		k = first
	}
}
