package loop

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// members is which machines have which names; part of runner.
type members struct {
	byName map[string]nodes.Member
	// told are the names whose machines a ledger told, with that ledger's edition:
	// a newer one counts more.
	told map[string]uint64
	// lost is set in a life that began without a record: ledgers tell then whose
	// the names are, however late they come.
	lost bool
	// tokens are the join tokens that bound their uses and are not over, by id.
	tokens map[string]tokenUse
	// revoked are the names that were handed out as such, of the revision judged.
	revoked []string
	judged  *desired.Snapshot
}

// tokenUse is the decision about a join token.
type tokenUse struct {
	Expires time.Time `json:"expires"`
	// Identities are those that joined with it.
	Identities []string `json:"identities"`
}

// usesKept is how long the uses of a token are remembered after its end: clocks
// that were wrong are set right, and the token is good again then.
const usesKept = 24 * time.Hour

// over reports whether nobody needs to know the uses any more.
func (u *tokenUse) over(now time.Time) bool { return u.Expires.Add(usesKept).Before(now) }

// admission is a question of Admit.
type admission struct {
	nodes.Admission
	answer chan error
}

// Admit decides whether a machine may have a node's name, and returns once that
// is recorded: nil, a *nodes.TakenError when the name is another machine's, a
// *nodes.RemovedError when it was that of a removed node, or why not.
func (l *Loop) Admit(ctx context.Context, a nodes.Admission) error {
	q := admission{a, make(chan error, 1)}
	select {
	case l.admissions <- q:
	case <-ctx.Done():
		return fmt.Errorf("admit node %s: the server is still starting: %w", a.Name, ctx.Err())
	}
	select {
	case err := <-q.answer:
		return err
	case <-ctx.Done():
		return fmt.Errorf("admit node %s: %w", a.Name, ctx.Err())
	}
}

// admit decides and records. Nothing is changed when the record fails.
func (r *runner) admit(ctx context.Context, a nodes.Admission) error {
	known := r.members.byName[a.Name]
	switch {
	case known.Removed && a.Token == "":
		return &nodes.RemovedError{Name: a.Name}
	case known.Removed:
	case known.Identity == a.Identity && !known.Assumed:
		return nil
	case known.Identity == a.Identity && a.Assumed:
		return nil
	case known.Identity != "" && known.Identity != a.Identity && !a.Replace:
		return &nodes.TakenError{Member: known}
	}
	decisions, err := r.useToken(a, known)
	if err != nil {
		return err
	}
	a.Succeeds = known.Succeeds || known.Identity != "" && known.Identity != a.Identity
	d, err := memberDecision(a.Member)
	if err != nil {
		return err
	}
	decisions = append(decisions, d)
	if err := r.o.Record.Record(ctx, decisions); err != nil {
		return fmt.Errorf("node %s is not taken in, for that can't be recorded: %w", a.Name, err)
	}
	for _, d := range decisions {
		r.outbox.decide(d) // the ledger is told with the rest
		r.takeIn(d)
	}
	delete(r.members.told, a.Name)
	if known.Identity != "" && known.Identity != a.Identity && !known.Removed {
		r.o.Log.Warn("a node's name belongs to another machine now", "node", a.Name, "from", a.From, "before", known.From)
	}
	return nil
}

// useToken counts a use of a token that bounds them, and forgets those that are
// over. One that replaces gives a machine the name once: the agent keeps it in its
// settings and shows it at every start, also after another machine took the name
// from this one.
func (r *runner) useToken(a nodes.Admission, known nodes.Member) ([]nodes.Decision, error) {
	var decisions []nodes.Decision
	now := r.now()
	for id, use := range r.members.tokens {
		if use.over(now) {
			decisions = append(decisions, nodes.Decision{Kind: kindToken, Key: id})
		}
	}
	if a.Token == "" || a.Uses == 0 && !a.Replace {
		return decisions, nil
	}
	use := r.members.tokens[a.Token]
	if slices.Contains(use.Identities, a.Identity) {
		if a.Replace && (known.Removed || known.Identity != a.Identity) {
			return nil, fmt.Errorf("with this token the machine became node %s before, and was removed or replaced since: make another one with tally token create --replace, if it is to be the node again", a.Name)
		}
		return decisions, nil
	}
	if a.Uses > 0 && len(use.Identities) >= a.Uses {
		return nil, fmt.Errorf("the join token was good for %s and is used up: make another one with tally token create", plural(a.Uses, "use"))
	}
	d, err := tokenDecision(a.Token, tokenUse{a.Expires, append(slices.Clone(use.Identities), a.Identity)})
	if err != nil {
		return nil, fmt.Errorf("count the use of a join token: %w", err)
	}
	return append(decisions, d), nil
}

func tokenDecision(id string, use tokenUse) (nodes.Decision, error) {
	value, err := json.Marshal(use)
	return nodes.Decision{Kind: kindToken, Key: id, Value: value}, err
}

func memberDecision(m nodes.Member) (nodes.Decision, error) {
	value, err := json.Marshal(m)
	if err != nil {
		return nodes.Decision{}, fmt.Errorf("record node %s: %w", m.Name, err)
	}
	return nodes.Decision{Kind: kindNode, Key: m.Name, Value: value}, nil
}

// takeIn makes a recorded decision about machines the one in force.
func (r *runner) takeIn(d nodes.Decision) {
	switch {
	case d.Kind == kindToken && d.Value == nil:
		delete(r.members.tokens, d.Key)
	case d.Kind == kindToken:
		var use tokenUse
		if err := json.Unmarshal(d.Value, &use); err != nil {
			r.o.Log.Warn("the uses of a join token can't be read", "token", d.Key, "reason", err)
			return
		}
		r.members.tokens[d.Key] = use
	case d.Kind == kindNode && d.Value != nil:
		m, err := memberOf(d)
		if err != nil {
			r.o.Log.Warn("what is recorded of a node can't be read; the first machine with a certificate of that name counts", "node", d.Key, "reason", err)
		}
		r.members.byName[m.Name] = m
		r.o.Executor.Member(m)
	}
}

// memberOf reads a decision; of one that can't be read, the name.
func memberOf(d nodes.Decision) (nodes.Member, error) {
	m := nodes.Member{}
	if err := json.Unmarshal(d.Value, &m); err != nil {
		return nodes.Member{Name: d.Key}, err
	}
	m.Name = d.Key
	return m, nil
}

// remember takes in what a ledger of an edition says about machines, unless
// something was decided that counts more. It returns what is to be recorded, if
// anything is.
func (r *runner) remember(d nodes.Decision, edition uint64) (nodes.Decision, bool) {
	counts := false
	switch d.Kind {
	case kindToken:
		d, counts = r.addUses(d)
	case kindNode:
		counts = r.mayTell(d, edition)
	}
	if counts {
		r.takeIn(d)
	}
	return d, counts
}

// mayTell reports whether a ledger of an edition counts for a node's name, and
// notes it if so.
func (r *runner) mayTell(d nodes.Decision, edition uint64) bool {
	known := r.members.byName[d.Key]
	before, told := r.members.told[d.Key]
	if told && edition <= before || !told && known.Identity != "" && !known.Assumed {
		return false
	}
	m, err := memberOf(d)
	if err != nil || m.Identity == "" && known.Identity != "" {
		return false
	}
	if m.Identity != "" {
		r.members.told[d.Key] = edition
	}
	return true
}

// addUses adds to the uses of a join token those that a ledger tells: every use
// counts, whoever remembers it. It reports whether there are any.
func (r *runner) addUses(d nodes.Decision) (nodes.Decision, bool) {
	var use tokenUse
	if err := json.Unmarshal(d.Value, &use); err != nil || use.over(r.now()) {
		return d, false
	}
	known := r.members.tokens[d.Key].Identities
	use.Identities = slices.Compact(slices.Sorted(slices.Values(slices.Concat(known, use.Identities))))
	if len(use.Identities) == len(known) {
		return d, false
	}
	sum, err := tokenDecision(d.Key, use)
	return sum, err == nil
}

// recallMembers takes from a ledger that came after the start whose the names
// are that nobody decided on, and how often tokens were used. Where there was no
// record, it tells names that nobody knew as well: their nodes are expected, so
// that one that stays away is silent.
func (r *runner) recallMembers(ledger []nodes.Decision) {
	edition := editionOf(ledger)
	var expected []nodes.NodeState
	for _, d := range ledger {
		before, known := r.members.byName[d.Key]
		_, told := r.members.told[d.Key]
		if d.Kind != kindToken && !(d.Kind == kindNode && (told || before.Assumed || r.members.lost && !known)) {
			continue
		}
		d, counts := r.remember(d, edition)
		if counts {
			r.outbox.decide(d)
		}
		if counts && d.Kind == kindNode && !known && !r.members.byName[d.Key].Removed {
			expected = append(expected, nodes.NodeState{Node: nodes.Node{Name: d.Key}})
		}
	}
	if r.members.lost {
		r.recallLease(ledger)
	}
	if len(expected) > 0 {
		r.o.Executor.Expect(expected, r.times.longest)
	}
}

// knowNode records that there is such a node: the server's own machine comes
// back without being admitted.
func (r *runner) knowNode(state *nodes.NodeState) {
	m, known := r.members.byName[state.Name]
	if known && !(m.Removed && state.Ready) {
		return
	}
	m.Name, m.Removed = state.Name, false
	r.settleMember(m)
}

// settleMember makes what is decided about a name the one in force, and has it
// recorded with the rest.
func (r *runner) settleMember(m nodes.Member) {
	d, err := memberDecision(m)
	if err != nil {
		r.o.Log.Error("node not recorded", "node", m.Name, "reason", err)
		return
	}
	delete(r.members.told, m.Name)
	r.takeIn(d)
	r.outbox.decide(d)
}

// remove takes the names from the machines of removed nodes.
func (r *runner) remove() {
	if r.doubt != nil {
		return
	}
	for _, name := range r.state.Removed() {
		if m, known := r.members.byName[name]; known && !m.Removed {
			r.o.Log.Info("node removed from the cluster", "node", name, "from", m.From)
			m.Removed = true
			r.settleMember(m)
			r.o.Record.ForgetNode(name)
		}
	}
}

// revoke hands out the names that the revision in force shuts out.
func (r *runner) revoke() {
	m := &r.members
	if inForce := r.state.InForce(); inForce == m.judged || inForce == nil {
		return
	}
	m.judged = r.state.InForce()
	names := r.state.Revoked()
	if !slices.Equal(names, m.revoked) {
		m.revoked = names
		r.o.Executor.Revoke(names)
	}
}
