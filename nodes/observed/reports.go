package observed

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

const (
	// maxHistory bounds the revisions that the record remembers.
	maxHistory = 200
	// maxStatuses bounds the pods whose statuses it remembers of one node, and
	// maxUID their uids, in bytes: a node may say what it likes.
	maxStatuses = 10_000
	maxUID      = 1024
)

// node returns the record of a node, made if need be.
func (s *Store) node(name string) *nodeRecord {
	n := s.nodes[name]
	if n == nil {
		n = &nodeRecord{statuses: map[nodes.UID]*nodes.PodStatus{}}
		s.nodes[name] = n
	}
	return n
}

// SaveNode remembers a node's last known state.
func (s *Store) SaveNode(state nodes.NodeState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.node(state.Name).state = &state
	s.behind[Place{Part: PartNodes, Key: state.Name}] = state
	s.touch()
}

// SaveReport remembers the statuses that a report brings, which must not be
// changed afterwards; a complete one replaces all of its node's. Those beyond
// 10,000 are not remembered.
func (s *Store) SaveReport(r nodes.Report) {
	if r.Node == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	record := s.node(r.Node)
	before := record.statuses
	if r.Complete {
		record.statuses = make(map[nodes.UID]*nodes.PodStatus, len(r.Statuses))
	}
	for i := range r.Statuses {
		status := &r.Statuses[i]
		if !record.mayKeep(status.UID) {
			continue
		}
		// A node that only connected anew says what it said before.
		if old, known := before[status.UID]; !known || !reflect.DeepEqual(old, status) {
			s.behind[statusPlace(r.Node, status.UID)] = status
		}
		record.statuses[status.UID] = status
	}
	for _, uid := range r.Gone {
		if _, known := record.statuses[uid]; known {
			delete(record.statuses, uid)
			s.behind[statusPlace(r.Node, uid)] = nil
		}
	}
	if r.Complete {
		for uid := range before {
			if _, still := record.statuses[uid]; !still {
				s.behind[statusPlace(r.Node, uid)] = nil
			}
		}
	}
	s.touch()
}

// mayKeep tells whether a pod's status has a place.
func (n *nodeRecord) mayKeep(uid nodes.UID) bool {
	_, has := n.statuses[uid]
	return has || uid != "" && len(uid) <= maxUID && len(n.statuses) < maxStatuses
}

// ForgetNode drops what a node said.
func (s *Store) ForgetNode(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	record := s.nodes[name]
	if record == nil {
		return
	}
	for uid := range record.statuses {
		s.behind[statusPlace(name, uid)] = nil
	}
	s.behind[Place{Part: PartNodes, Key: name}] = nil
	delete(s.nodes, name)
	s.touch()
}

func statusPlace(node string, uid nodes.UID) Place {
	return Place{Part: PartStatuses, Of: node, Key: string(uid)}
}

// Observed returns what the nodes said last: their states, and one incomplete
// report a node with the statuses of its pods. Both ordered by name.
func (s *Store) Observed() ([]nodes.NodeState, []nodes.Report) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var states []nodes.NodeState
	var reports []nodes.Report
	for _, name := range slices.Sorted(maps.Keys(s.nodes)) {
		record := s.nodes[name]
		if record.state != nil {
			states = append(states, *record.state)
		}
		if len(record.statuses) == 0 {
			continue
		}
		report := nodes.Report{Node: name}
		for _, uid := range slices.Sorted(maps.Keys(record.statuses)) {
			report.Statuses = append(report.Statuses, *record.statuses[uid])
		}
		reports = append(reports, report)
	}
	return states, reports
}

func historyPlace(id uint64) Place { return Place{Part: PartHistory, Key: fmt.Sprintf("%016x", id)} }

// AppendHistory adds a revision as the newest. The oldest beyond 200 go.
func (s *Store) AppendHistory(e nodes.HistoryEntry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.appendHistory(e)
}

// SetHistory replaces all revisions; the newest comes first.
func (s *Store) SetHistory(entries []nodes.HistoryEntry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.history {
		s.behind[historyPlace(e.id)] = nil
	}
	s.history = nil
	for _, e := range slices.Backward(entries) {
		s.appendHistory(e)
	}
	s.touch()
}

// appendHistory adds a revision as the newest. The caller holds mu.
func (s *Store) appendHistory(e nodes.HistoryEntry) {
	id := uint64(1)
	if n := len(s.history); n > 0 {
		id = s.history[n-1].id + 1
	}
	s.history = append(s.history, entry{id, e})
	s.behind[historyPlace(id)] = e
	for len(s.history) > maxHistory {
		s.behind[historyPlace(s.history[0].id)] = nil
		s.history = slices.Delete(s.history, 0, 1)
	}
	s.touch()
}

// UpdateHistory replaces the newest entry of e's revision; an entry that is
// not there any more is left alone.
func (s *Store) UpdateHistory(e nodes.HistoryEntry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := len(s.history) - 1; i >= 0; i-- {
		if s.history[i].Revision.SHA == e.Revision.SHA {
			s.history[i].HistoryEntry = e
			s.behind[historyPlace(s.history[i].id)] = e
			s.touch()
			return
		}
	}
}

// History returns at most limit revisions, the newest first; 0 means all.
func (s *Store) History(limit int) []nodes.HistoryEntry {
	s.mu.Lock()
	defer s.mu.Unlock()
	if limit <= 0 || limit > len(s.history) {
		limit = len(s.history)
	}
	out := make([]nodes.HistoryEntry, 0, limit)
	for _, e := range slices.Backward(s.history) {
		if len(out) == limit {
			break
		}
		out = append(out, e.HistoryEntry)
	}
	return out
}

// AppendEvents adds events; one that repeats an earlier one raises its Count.
// Events are kept for an hour, and the newest 32 an object and 10,000 in all.
func (s *Store) AppendEvents(added []nodes.Event) {
	if len(added) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range added {
		s.events.add(e, s.behind)
	}
	s.events.expire(s.behind)
	s.touch()
}

// Events returns an object's events, the oldest first.
func (s *Store) Events(object desired.Key) []nodes.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.events.of(object)
	slices.SortFunc(out, func(a, b nodes.Event) int {
		return cmp.Or(a.Last.Compare(b.Last), a.First.Compare(b.First), cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.Message, b.Message))
	})
	return out
}
