// Package observedtest is the suite that every record must pass, whatever it
// keeps its data in.
package observedtest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// Record is what the suite asks of a record.
type Record interface {
	Fresh() bool
	Decisions() ([]nodes.Decision, error)
	Record(ctx context.Context, decisions []nodes.Decision) error
	SaveNode(state nodes.NodeState)
	SaveReport(r nodes.Report)
	ForgetNode(name string)
	Observed() ([]nodes.NodeState, []nodes.Report)
	AppendHistory(e nodes.HistoryEntry)
	UpdateHistory(e nodes.HistoryEntry)
	SetHistory(entries []nodes.HistoryEntry)
	History(limit int) []nodes.HistoryEntry
	AppendEvents(events []nodes.Event)
	Events(object desired.Key) []nodes.Event
	Flush() error
	Close() error
}

// Place is where a record lives: Open opens what an earlier Open left, with
// Now as its clock.
type Place interface {
	Open(t *testing.T, now func() time.Time) Record
}

// Run runs the suite; empty makes a new place without a record.
func Run(t *testing.T, empty func(t *testing.T) Place) {
	for name, test := range map[string]func(t *testing.T, s *suite){
		"decisions last":             decisionsLast,
		"concurrent records":         concurrentRecords,
		"a large step":               largeStep,
		"names of any kind":          anyNames,
		"refuses nameless decisions": refusesNameless,
		"reports replace and add":    reports,
		"history":                    history,
		"history is bounded":         historyIsBounded,
		"events aggregate":           eventsAggregate,
		"events are bounded":         eventsAreBounded,
		"what no record can keep":    whatNoRecordCanKeep,
		"statuses are bounded":       statusesAreBounded,
	} {
		t.Run(name, func(t *testing.T) {
			s := &suite{t: t, place: empty(t), clock: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
			s.Record = s.place.Open(t, s.now)
			t.Cleanup(func() {
				if err := s.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
			})
			if !s.Fresh() {
				t.Fatal("an empty record is not fresh")
			}
			test(t, s)
		})
	}
}

// suite is one record with a clock of its own.
type suite struct {
	Record
	t     *testing.T
	place Place
	clock time.Time
}

func (s *suite) now() time.Time { return s.clock }

// reopen closes and opens the record, as a restart does.
func (s *suite) reopen() {
	s.t.Helper()
	if err := s.Close(); err != nil {
		s.t.Fatalf("close: %v", err)
	}
	s.Record = s.place.Open(s.t, s.now)
	if s.Fresh() {
		s.t.Fatal("a record that was there is fresh")
	}
}

func (s *suite) equal(what string, want, got any) {
	s.t.Helper()
	if reflect.DeepEqual(want, got) {
		return // cmp is slow with much text
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})); diff != "" {
		s.t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func (s *suite) decisions() []nodes.Decision {
	s.t.Helper()
	out, err := s.Decisions()
	if err != nil {
		s.t.Fatalf("decisions: %v", err)
	}
	return out
}

func (s *suite) record(decisions ...nodes.Decision) {
	s.t.Helper()
	if err := s.Record.Record(s.t.Context(), decisions); err != nil {
		s.t.Fatalf("record: %v", err)
	}
}

func decision(kind, key, value string) nodes.Decision {
	d := nodes.Decision{Kind: kind, Key: key}
	if value != "" {
		d.Value = json.RawMessage(value)
	}
	return d
}

func decisionsLast(_ *testing.T, s *suite) {
	s.record(decision("service", "b", `{"ip":1}`), decision("pod", "x", `1`), decision("service", "a", `2`))
	s.record(decision("service", "b", `3`), decision("pod", "x", ""), decision("never", "seen", ""))
	want := []nodes.Decision{decision("service", "a", `2`), decision("service", "b", `3`)}
	s.equal("decisions", want, s.decisions())
	s.reopen()
	s.equal("decisions after a restart", want, s.decisions())
}

func concurrentRecords(t *testing.T, s *suite) {
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			d := decision("k", fmt.Sprintf("%02d", i), fmt.Sprint(i))
			if err := s.Record.Record(t.Context(), []nodes.Decision{d}); err != nil {
				t.Errorf("record %d: %v", i, err)
			}
		})
	}
	all.Wait()
	s.reopen()
	if got := len(s.decisions()); got != 50 {
		t.Errorf("%d decisions, want 50", got)
	}
}

// largeStep is more than a store may take at once.
func largeStep(_ *testing.T, s *suite) {
	var step, want []nodes.Decision
	for i := range 500 {
		step = append(step, decision("pod", fmt.Sprintf("%05d", i), fmt.Sprintf(`{"n":%d,"text":%q}`, i, strings.Repeat("x", 3000))))
	}
	s.record(step...)
	s.equal("decisions", step, s.decisions())
	for i := range step {
		if step[i].Value = nil; i%2 == 0 {
			step[i].Value = json.RawMessage("0")
			want = append(want, step[i])
		}
	}
	s.record(step...)
	s.record(decision("pod", "00000", "1"), decision("pod", "00000", "2"))
	want[0].Value = json.RawMessage("2")
	s.equal("decisions", want, s.decisions())
	s.reopen()
	s.equal("decisions after a restart", want, s.decisions())
}

func anyNames(_ *testing.T, s *suite) {
	want := []nodes.Decision{
		decision("a/b", "c", "1"), decision("a", "b/c", "2"), decision("a", "b/c/", "3"), decision("a%2Fb", "c", "4"),
		decision("ü", " \x00\xff", "5"), decision("dot", "..", "6"),
	}
	s.record(want...)
	sort := cmpopts.SortSlices(func(a, b nodes.Decision) bool { return a.Kind+"\x00"+a.Key < b.Kind+"\x00"+b.Key })
	for range 2 {
		if diff := cmp.Diff(want, s.decisions(), sort); diff != "" {
			s.t.Errorf("decisions (-want +got):\n%s", diff)
		}
		s.reopen()
	}
}

func refusesNameless(t *testing.T, s *suite) {
	for _, d := range []nodes.Decision{decision("", "k", "1"), decision("k", "", "1")} {
		if err := s.Record.Record(t.Context(), []nodes.Decision{decision("good", "one", "1"), d}); err == nil {
			t.Errorf("%+v was recorded", d)
		}
	}
	s.equal("decisions", []nodes.Decision(nil), s.decisions())
}

func reports(_ *testing.T, s *suite) {
	status := func(uid, message string) nodes.PodStatus {
		return nodes.PodStatus{UID: nodes.UID(uid), Message: message, Started: s.clock}
	}
	node := nodes.NodeState{Node: nodes.Node{Name: "n1", Version: "1"}, Ready: true, Since: s.clock}
	s.SaveNode(node)
	s.SaveReport(nodes.Report{Node: "n1", Complete: true, Statuses: []nodes.PodStatus{status("a", "1"), status("b", "1"), status("c", "1")}})
	s.SaveReport(nodes.Report{Node: "n1", Statuses: []nodes.PodStatus{status("b", "2")}, Gone: []nodes.UID{"c"}})
	s.SaveReport(nodes.Report{Node: "n2", Statuses: []nodes.PodStatus{status("z", "1")}})
	want := []nodes.Report{
		{Node: "n1", Statuses: []nodes.PodStatus{status("a", "1"), status("b", "2")}},
		{Node: "n2", Statuses: []nodes.PodStatus{status("z", "1")}},
	}
	for range 2 {
		states, got := s.Observed()
		s.equal("states", []nodes.NodeState{node}, states)
		s.equal("statuses", want, got)
		s.reopen()
	}
	s.SaveReport(nodes.Report{Node: "n1", Complete: true, Statuses: []nodes.PodStatus{status("d", "1")}})
	want[0].Statuses = []nodes.PodStatus{status("d", "1")}
	for range 2 {
		_, got := s.Observed()
		s.equal("statuses after a complete report", want, got)
		s.reopen()
	}
	s.ForgetNode("n1")
	s.ForgetNode("never heard of")
	for range 2 {
		states, got := s.Observed()
		s.equal("states without a node that is forgotten", []nodes.NodeState(nil), states)
		s.equal("statuses without it", want[1:], got)
		s.reopen()
	}
}

func entry(sha string, outcome nodes.Outcome) nodes.HistoryEntry {
	return nodes.HistoryEntry{Revision: desired.Revision{SHA: sha, Time: time.Unix(9, 0).UTC()}, Outcome: outcome, Seen: time.Unix(10, 0).UTC()}
}

func history(_ *testing.T, s *suite) {
	for _, sha := range []string{"a", "b", "a", "c"} {
		s.AppendHistory(entry(sha, nodes.OutcomePending))
	}
	s.UpdateHistory(entry("a", nodes.OutcomeConverged))
	s.UpdateHistory(entry("unknown", nodes.OutcomeConverged))
	want := []nodes.HistoryEntry{
		entry("c", nodes.OutcomePending), entry("a", nodes.OutcomeConverged),
		entry("b", nodes.OutcomePending), entry("a", nodes.OutcomePending),
	}
	for range 2 {
		s.equal("history", want, s.History(0))
		s.equal("newest two", want[:2], s.History(2))
		s.reopen()
	}
	want = []nodes.HistoryEntry{entry("f", nodes.OutcomePending), entry("e", nodes.OutcomeFailed)}
	s.SetHistory(want)
	s.AppendHistory(entry("g", nodes.OutcomePending))
	want = slices.Insert(want, 0, entry("g", nodes.OutcomePending))
	for range 2 {
		s.equal("another history", want, s.History(0))
		s.reopen()
	}
}

func historyIsBounded(t *testing.T, s *suite) {
	for i := range 1000 {
		s.AppendHistory(entry(fmt.Sprint(i), nodes.OutcomeConverged))
	}
	for range 2 {
		got := s.History(0)
		if len(got) < 50 || len(got) > 500 || got[0].Revision.SHA != "999" {
			t.Errorf("%d entries, the newest %q", len(got), got[0].Revision.SHA)
		}
		s.reopen()
	}
}

var web = desired.Key{Kind: "Pod", Namespace: "default", Name: "web"}

func event(object desired.Key, message string, at time.Time) nodes.Event {
	return nodes.Event{Object: object, Reason: "BackOff", Message: message, Source: "agent", First: at, Last: at, Count: 1}
}

func eventsAggregate(_ *testing.T, s *suite) {
	begin := s.clock
	other := desired.Key{Kind: "Pod", Namespace: "default", Name: "other"}
	for range 3 {
		s.AppendEvents([]nodes.Event{event(web, "restarting", s.clock), event(other, "restarting", s.clock)})
		s.clock = s.clock.Add(time.Minute)
	}
	s.AppendEvents([]nodes.Event{event(web, "another", s.clock)})
	again := event(web, "restarting", begin)
	again.Last, again.Count = begin.Add(2*time.Minute), 3
	want := []nodes.Event{again, event(web, "another", begin.Add(3*time.Minute))}
	for range 2 {
		s.equal("events", want, s.Events(web))
		s.reopen()
	}
	s.clock = begin.Add(62*time.Minute + time.Second)
	s.equal("events an hour later", want[1:], s.Events(web))
	s.clock = s.clock.Add(time.Hour)
	s.equal("events much later", []nodes.Event(nil), s.Events(web))
}

func eventsAreBounded(t *testing.T, s *suite) {
	for i := range 500 {
		s.clock = s.clock.Add(time.Second)
		s.AppendEvents([]nodes.Event{event(web, fmt.Sprint(i), s.clock)})
	}
	for range 2 {
		got := s.Events(web)
		if len(got) < 10 || len(got) > 100 || got[len(got)-1].Message != "499" {
			t.Errorf("%d events of one pod", len(got))
		}
		s.reopen()
	}
}

// whatNoRecordCanKeep comes from outside, and must not hold up the rest.
func whatNoRecordCanKeep(t *testing.T, s *suite) {
	statuses := []nodes.PodStatus{
		{UID: ""}, {UID: nodes.UID(strings.Repeat("u", 40_000))}, {UID: "large", Message: strings.Repeat("m", 2<<20)}, {UID: "good"},
	}
	gone := []nodes.UID{"", nodes.UID(strings.Repeat("v", 40_000)), "unknown"}
	s.SaveReport(nodes.Report{Node: "n1", Complete: true, Statuses: statuses, Gone: gone})
	s.SaveNode(nodes.NodeState{Node: nodes.Node{Name: "n1", Labels: map[string]string{"l": strings.Repeat("l", 2<<20)}}})
	far := entry("far", nodes.OutcomePending)
	far.Revision.Time = time.Date(12026, 1, 1, 0, 0, 0, 0, time.UTC)
	s.AppendHistory(far)
	s.AppendHistory(entry("near", nodes.OutcomePending))
	s.AppendEvents([]nodes.Event{event(web, strings.Repeat("e", 2<<20), s.clock)})
	s.record(decision("service", "a", "1"))
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	s.reopen()
	s.equal("decisions", []nodes.Decision{decision("service", "a", "1")}, s.decisions())
	s.equal("history", []nodes.HistoryEntry{entry("near", nodes.OutcomePending)}, s.History(0))
	_, got := s.Observed()
	s.equal("statuses", []nodes.Report{{Node: "n1", Statuses: []nodes.PodStatus{{UID: "good"}}}}, got)
}

// statusesAreBounded, for a node may say what it likes.
func statusesAreBounded(t *testing.T, s *suite) {
	for i := range 300 {
		var statuses []nodes.PodStatus
		for j := range 100 {
			statuses = append(statuses, nodes.PodStatus{UID: nodes.UID(fmt.Sprintf("%d-%d", i, j))})
		}
		s.SaveReport(nodes.Report{Node: "n1", Statuses: statuses})
	}
	s.SaveReport(nodes.Report{Node: "n1", Statuses: []nodes.PodStatus{{UID: "0-0", Message: "newer"}}})
	if _, got := s.Observed(); len(got[0].Statuses) > 20_000 || got[0].Statuses[0].Message != "newer" {
		t.Errorf("%d statuses of one node, the first %+v", len(got[0].Statuses), got[0].Statuses[0])
	}
}
