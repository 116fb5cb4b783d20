package registry

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/wire"
)

// bug is a rule that is broken on purpose, to see that it would be found.
type bug string

const (
	none             bug = ""
	countsFromAnswer bug = "the agent counts a lease from its answer"
	startsAnyway     bug = "the agent starts a fenced pod without its fence"
	checksOnce       bug = "the agent does not look at the fence again before the start"
	slowKeeper       bug = "a kill takes ten seconds"
	fastClock        bug = "clocks differ by half"
	numbersEarly     bug = "the planner copies the number before it has planned"
	forgetsLeases    bug = "a server that starts takes no lease for granted"
	shortMemory      bug = "a server that starts takes the newest lease for the longest"
	stopsAtSilence   bug = "a silent node is taken for lapsed"
)

var bugs = []bug{
	countsFromAnswer, startsAnyway, checksOnce, slowKeeper, fastClock, numbersEarly,
	forgetsLeases, shortMemory, stopsAtSilence,
}

// duel is one node that has one fenced pod, a server, and a planner that gives
// the pod away as soon as it may. Everything between them takes as long as the
// test likes, in any order that one stream allows.
type duel struct {
	bug    bug
	choose func(n int) int // one of 0…n-1

	// now is real time; serverPace and nodePace are by how much per mille the
	// clocks go wrong, booted is the real time of the node's boot.
	now                  time.Duration
	serverPace, nodePace int64
	booted               time.Duration

	registry *Registry
	times    desired.Nodes
	// longest is what is recorded of leases.
	longest time.Duration
	paused  bool // the server
	busy    bool // the planner, with a large plan or a slow record

	// The planner: what it holds of the node, and what is recorded of the pod.
	heard         []Input // and not planned with yet
	state         nodes.NodeState
	fenced, given bool

	link *link // nil while there is no connection
	cut  bool  // nothing passes

	// The agent: its newest assignment, also after a restart, and lease.
	holds    bool
	leased   time.Duration
	frozen   bool
	checked  bool // it has found that it may start the pod
	toldOnce bool

	// The keeper: the fence's end by the node's clock, 0 for none, and how long a kill takes.
	fence time.Duration
	slow  time.Duration

	// created is a container without a process of the pod's, running the pod.
	created, running bool
}

// link is a connection with what is under way on it.
type link struct {
	session *session
	joined  bool
	// over: the server has ended the session, what it sent may still arrive.
	over  bool
	sent  wire.Update
	up    []upward
	down  []downward
	beats uint64
	asked map[uint64]time.Duration
}

type upward struct {
	beat   uint64
	report *nodes.Report
}

type downward struct {
	assignment *nodes.Assignment
	beat       uint64
	lease      time.Duration
}

func pace(d time.Duration, perMille int64) time.Duration {
	return d + d/1000*time.Duration(perMille)
}

func (d *duel) serverClock() time.Duration { return time.Hour + pace(d.now, d.serverPace) }
func (d *duel) nodeClock() time.Duration   { return time.Minute + pace(d.now-d.booted, d.nodePace) }

func newDuel(b bug, choose func(n int) int) (*duel, error) {
	d := &duel{bug: b, choose: choose, times: desired.Nodes{SilentAfter: 4 * time.Second, Lease: 20 * time.Second}}
	d.longest = d.times.Lease
	d.serverPace, d.nodePace = int64(choose(11)-5), int64(choose(11)-5)
	if b == fastClock {
		d.serverPace, d.nodePace = 250, -250
	}
	d.slow = time.Duration(choose(19)) * 100 * time.Millisecond
	if b == slowKeeper {
		d.slow = 10 * time.Second
	}
	return d, d.startServer()
}

func (d *duel) startServer() error {
	r, err := New(Options{
		Log: slog.New(slog.DiscardHandler), Clock: d.serverClock,
		Now: func() time.Time { return time.Unix(1_900_000_000, 0).Add(d.now) },
	})
	if err != nil {
		return err
	}
	longest := d.longest
	if d.bug == shortMemory {
		longest = d.times.Lease
	}
	d.registry, d.link, d.heard = r, nil, nil
	if d.state.Name != "" {
		d.state.Ready, d.state.Lapsed = false, false
		r.Expect([]nodes.NodeState{d.state}, longest)
	}
	r.Tune(d.times)
	if d.bug == shortMemory {
		r.longest = d.times.Lease
	}
	if d.bug == forgetsLeases {
		r.began = -time.Hour
	}
	return nil
}

// take notes what the registry has to say.
func (d *duel) take() {
	for in, ok := d.registry.inputs.take(); ok; in, ok = d.registry.inputs.take() {
		d.heard = append(d.heard, in)
	}
}

// plan decides on what was heard, in order.
func (d *duel) plan() {
	heard := d.heard
	d.heard = nil
	for _, in := range heard {
		if in.Node != nil {
			d.state = *in.Node
		}
		if in.Report != nil && len(in.Report.Fenced) > 0 && !d.given {
			d.fenced = true
		}
		lapsed := d.state.Lapsed || d.bug == stopsAtSilence
		if !d.state.Ready && lapsed && d.fenced {
			d.given = true
		}
	}
	if len(heard) == 0 || d.state.Session == 0 {
		return
	}
	d.assign(d.state.Session)
}

func (d *duel) assign(session uint64) {
	a := nodes.Assignment{Node: "n1", Session: session}
	if !d.given {
		a.Pods, a.Fenced = []*nodes.Pod{{UID: "p"}}, []nodes.UID{"p"}
	}
	d.registry.Assign(a)
}

// join hands the complete report to the registry.
func (d *duel) join(report *nodes.Report) error {
	if err := d.registry.join(d.link.session, report); err != nil {
		return err
	}
	d.link.joined = true
	if d.bug == numbersEarly {
		d.assign(d.registry.members["n1"].number)
	}
	return nil
}

// write is a turn of the server's writer.
func (d *duel) write() {
	l := d.link
	select {
	case <-l.session.beats:
		l.down = append(l.down, downward{beat: l.session.beat.Load(), lease: d.registry.lease(l.session)})
	case <-l.session.dirty:
		if update := d.registry.news(l.session, &l.sent); update != nil && update.Assignment != nil {
			l.down = append(l.down, downward{assignment: update.Assignment})
			l.session.told(update.Assignment)
		}
	default:
	}
}

func (d *duel) serverHears() error {
	l := d.link
	m := l.up[0]
	l.up = l.up[1:]
	l.session.hear(d.serverClock(), m.beat)
	switch {
	case m.report == nil:
	case m.report.Complete:
		return d.join(m.report)
	default:
		d.registry.hear(l.session, m.report)
	}
	return nil
}

func (d *duel) agentHears() {
	l := d.link
	m := l.down[0]
	l.down = l.down[1:]
	if m.assignment != nil {
		d.holds = len(m.assignment.Pods) > 0
		return
	}
	sent, asked := l.asked[m.beat]
	if m.lease == 0 || !asked {
		return
	}
	if d.bug == countsFromAnswer {
		sent = d.nodeClock()
	}
	d.leased = max(d.leased, sent+m.lease)
	if d.leased <= d.nodeClock() || !d.holds {
		return
	}
	d.fence = max(d.fence, d.leased)
	if !d.toldOnce {
		d.toldOnce = true
		l.up = append(l.up, upward{report: &nodes.Report{Node: "n1", Fenced: []nodes.UID{"p"}}})
	}
}

// agentStarts is a step on the way of the pod to running: the check, the
// container, another check, the process. It may be stopped between any two.
func (d *duel) agentStarts() {
	may := d.fence > d.nodeClock() || d.bug == startsAnyway
	switch {
	case d.running || !d.holds:
		d.checked = false
	case !d.checked:
		d.checked = may
	case !d.created:
		d.created, d.checked = true, d.bug == checksOnce
	default:
		d.running, d.created, d.checked = true, false, false
	}
}

// keep is the keeper's look at its timer.
func (d *duel) keep() {
	if d.fence == 0 || d.nodeClock() < d.fence+d.slow {
		return
	}
	d.running, d.created = false, false
}

func (d *duel) dial() {
	report := &nodes.Report{Node: "n1", Complete: true, Info: &nodes.Node{Name: "n1"}}
	if d.toldOnce {
		report.Fenced = []nodes.UID{"p"}
	}
	d.link = &link{session: newSession("n1", "test"), asked: map[uint64]time.Duration{}, up: []upward{{report: report}}}
	d.link.session.hear(d.serverClock(), 0)
}

func (d *duel) hangUp() {
	if d.link != nil && d.link.joined {
		d.registry.leave(d.link.session)
	}
	d.link = nil
}

func (d *duel) beat() {
	l := d.link
	l.beats++
	l.asked[l.beats] = d.nodeClock()
	l.up = append(l.up, upward{beat: l.beats})
}

// reboot loses processes, fences and what was under way, but not the store.
func (d *duel) reboot() {
	d.hangUp()
	d.running, d.created, d.checked, d.frozen = false, false, false, false
	d.fence, d.leased, d.booted = 0, 0, d.now
}

// pass lets time go by in small steps, in which keeper and server look.
func (d *duel) pass(t time.Duration) error {
	for end := d.now + t; d.now < end; {
		d.now += min(100*time.Millisecond, end-d.now)
		d.keep()
		if !d.paused {
			d.registry.sweep()
		}
		if err := d.check(); err != nil {
			return err
		}
	}
	return nil
}

var errTwice = errors.New("the pod runs on the node, and it was given away")

func (d *duel) check() error {
	if d.running && d.given {
		return fmt.Errorf("after %s: %w", d.now, errTwice)
	}
	return nil
}

// step is a fault, or else a round of what usually happens.
func (d *duel) step() error {
	switch d.choose(40) {
	case 0, 1:
		d.cut = d.choose(2) == 0
	case 2, 3:
		d.frozen = d.choose(2) == 0
	case 4:
		d.paused = d.choose(2) == 0
	case 5:
		if d.choose(4) == 0 {
			d.reboot()
		}
	case 6:
		if d.choose(3) == 0 {
			return d.restart()
		}
	case 7:
		if d.choose(3) == 0 {
			d.hangUp()
		}
	case 8:
		return d.pass(time.Duration(1+d.choose(80)) * 100 * time.Millisecond)
	case 10, 11:
		d.busy = d.choose(2) == 0
	case 9:
		if d.cut || d.frozen {
			return d.pass(time.Duration(d.choose(50)) * time.Second)
		}
	default:
		return errors.Join(d.round(), d.pass(time.Duration(d.choose(10))*100*time.Millisecond))
	}
	return d.check()
}

// restart ends the server and starts another, perhaps with another revision,
// whose times are recorded before they are in force.
func (d *duel) restart() error {
	if d.choose(2) == 0 {
		d.times.Lease = time.Duration(4+d.choose(40)) * time.Second
		d.longest = max(d.longest, d.times.Lease)
		d.registry.Tune(d.times)
		if d.choose(2) == 0 {
			return nil
		}
	}
	return d.startServer()
}

// round is a turn of everybody who is not stopped; now and then one is left out.
func (d *duel) round() (err error) {
	agent, server := !d.frozen, !d.paused
	turn := func(possible bool, do func()) {
		if possible && d.choose(8) > 0 {
			do()
		}
	}
	connected := func() bool { return d.link != nil && !d.cut }
	turn(agent && d.link == nil && !d.cut, d.dial)
	turn(agent && d.link != nil, d.beat)
	if d.link != nil && len(d.link.session.ended) > 0 && !d.link.over {
		d.link.over, d.link.up = true, nil
	}
	for n := 0; server && connected() && !d.link.over && n < 3 && len(d.link.up) > 0 && err == nil; n++ {
		turn(true, func() { err = d.serverHears() })
	}
	turn(server, d.take)
	turn(server && !d.busy, d.plan)
	for range 3 {
		turn(server && d.link != nil && !d.link.over, d.write)
	}
	for n := 0; agent && connected() && n < 3 && len(d.link.down) > 0; n++ {
		turn(true, d.agentHears)
	}
	turn(agent, d.agentStarts)
	if agent && connected() && d.link.over && len(d.link.down) == 0 {
		d.hangUp()
	}
	if err != nil {
		return err
	}
	return d.check()
}

// fight runs steps until the pod runs twice; nil if it never does. It tells
// whether the pod ever ran, and was given away.
func fight(b bug, steps int, choose func(n int) int) (ran, given bool, err error) {
	d, err := newDuel(b, choose)
	for i := 0; i < steps && err == nil; i++ {
		err = d.step()
		ran, given = ran || d.running, given || d.given
	}
	return ran, given, err
}

// TestNoFencedPodRunsTwice tries interleavings of everything that leases depend on.
func TestNoFencedPodRunsTwice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		steps := rapid.IntRange(50, 1000).Draw(t, "steps")
		seed := rapid.Uint64().Draw(t, "seed")
		rng := rand.New(rand.NewPCG(seed, 1))
		if _, _, err := fight(none, steps, rng.IntN); err != nil {
			t.Fatal(err)
		}
	})
}

// TestBrokenRulesOfLeasesAreFound is the test of that test.
func TestBrokenRulesOfLeasesAreFound(t *testing.T) {
	const most = 3000
	for _, b := range bugs {
		t.Run(strings.ReplaceAll(string(b), " ", "-"), func(t *testing.T) {
			for seed := range uint64(most) {
				_, _, err := fight(b, 600, rand.New(rand.NewPCG(seed, 2)).IntN)
				if errors.Is(err, errTwice) {
					t.Logf("found with seed %d: %v", seed, err)
					return
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			t.Errorf("not found in %d runs", most)
		})
	}
	ran, given := 0, 0
	for seed := range uint64(100) {
		r, g, err := fight(none, 600, rand.New(rand.NewPCG(seed, 3)).IntN)
		if err != nil {
			t.Fatal(err)
		}
		if r {
			ran++
		}
		if g {
			given++
		}
	}
	t.Logf("in 100 runs without a bug the pod ran in %d and was given away in %d", ran, given)
	if ran < 20 || given < 20 {
		t.Error("too little happens")
	}
}
