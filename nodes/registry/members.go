package registry

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/trust"
	"github.com/tallyman-dev/tallyman/nodes/wire"
)

// clocksDiffer is by how much the clocks of servers may, which tell when a
// machine joined.
const clocksDiffer = time.Minute

// Member says which machine a node's name belongs to. A session of another one
// ends; the next machine must wait until that one's lease is over, for it may
// run fenced pods until then. Of a node that was removed nothing else is kept.
func (r *Registry) Member(m nodes.Member) {
	r.mu.Lock()
	defer r.mu.Unlock()
	known := r.member(m.Name)
	before := known.owner
	known.owner = m
	if s := known.session; s != nil {
		if err := r.contradicts(known, s); err != nil {
			r.shut(known, err)
		}
	}
	if before.Identity != "" && (before.Identity != m.Identity || before.Removed && !m.Removed) {
		known.after = max(known.until, r.began+over(r.longest))
	}
	if m.Removed && known.session == nil {
		known.state, known.assignment, known.expected = nodes.NodeState{}, nil, false
	}
}

// Revoke says all names that Git shuts out. Their sessions end, and none begins.
func (r *Registry) Revoke(names []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.revoked)
	for _, name := range names {
		r.revoked[name] = true
		if m := r.members[name]; m != nil && m.session != nil {
			r.shut(m, revoked(name))
		}
	}
}

// shut ends a session that may not be: nothing that it says counts any more. The
// caller holds mu.
func (r *Registry) shut(m *member, why error) {
	r.o.Log.Warn("the session of a node ends", "node", m.session.node, "reason", why)
	r.tellRefused(m.session.node, m.session.caller.From, why)
	m.session.end(why)
	r.retire(m)
	r.appointLedger()
}

func revoked(name string) error {
	return fmt.Errorf("node %s is revoked in Git: its v1 Node has the annotation tallyman.dev/revoked", name)
}

// contradicts says why a session may not be the node's. The caller holds mu.
func (r *Registry) contradicts(m *member, s *session) error {
	switch {
	case r.revoked[s.node]:
		return revoked(s.node)
	case s.caller.Local || s.caller.Identity == "":
		return nil
	case m.owner.Removed:
		return &nodes.RemovedError{Name: s.node}
	case m.owner.Identity != s.caller.Identity:
		return &nodes.TakenError{Member: m.owner}
	}
	after := m.after
	if m.owner.Succeeds && r.o.Now().Sub(m.owner.Joined) < over(r.longest)+clocksDiffer {
		after = max(after, r.began+over(r.longest)) // who was leased what before, an earlier server knew
	}
	if left := after - r.o.Clock(); left > 0 {
		return fmt.Errorf("node %s was another machine, whose lease may hold for %s more: wait", s.node, left.Round(time.Second))
	}
	return nil
}

// tellRefused notes on a node that somebody may not be it. From is an address;
// the server's own machine has none. Only who holds a certificate or a token of
// the cluster can cause that.
func (r *Registry) tellRefused(node, from string, why error) {
	now, who := r.o.Now().UTC(), "the server's own machine"
	if from != "" {
		who = "a machine at " + from
	}
	r.inputs.add(node, Input{Events: []nodes.Event{{
		Object: desired.Key{Kind: "Node", Name: node}, Warning: true, Reason: "Refused",
		Message: fmt.Sprintf("%s was refused as this node: %v", who, why),
		Source:  "server", First: now, Last: now, Count: 1,
	}}})
}

// identify finds out which node is at the other end of a public connection.
func (r *Registry) identify(ctx context.Context, p wire.Peer) (wire.Caller, error) {
	id, err := r.o.Authority.Identify(p.Chain)
	if err == nil {
		err = r.vouch(ctx, id, p.Host())
	}
	if err != nil {
		r.o.Log.Warn("agent refused", "node", id.Node, "from", p.Host(), "reason", err)
		return wire.Caller{}, err
	}
	return wire.Caller{Node: id.Node, Identity: id.Key, From: p.Host(), Expires: id.Expires}, nil
}

// vouch holds a certificate to what was decided about its name. When nothing
// was, or nobody remembers, the first one counts.
func (r *Registry) vouch(ctx context.Context, id trust.Identity, from string) error {
	refuse := func(why error) error {
		r.tellRefused(id.Node, from, why)
		return why
	}
	owner, err := r.mayHave(id.Node)
	switch {
	case err != nil:
		return refuse(err)
	case owner.Removed:
		return refuse(&nodes.RemovedError{Name: id.Node})
	case owner.Identity == id.Key:
		return nil
	case owner.Identity != "":
		return refuse(&nodes.TakenError{Member: owner})
	}
	err = r.o.Members.Admit(ctx, nodes.Admission{
		Member: nodes.Member{Name: id.Node, Identity: id.Key, From: from, Joined: r.o.Now().UTC(), Assumed: true},
	})
	if isRefusal(err) {
		return refuse(err)
	}
	return err
}

// isRefusal tells an answer about the name from one that nothing could be decided.
func isRefusal(err error) bool {
	_, taken := errors.AsType[*nodes.TakenError](err)
	_, removed := errors.AsType[*nodes.RemovedError](err)
	return taken || removed
}

// mayHave returns who has a name, or why no other machine may have it.
func (r *Registry) mayHave(name string) (nodes.Member, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.revoked[name]:
		return nodes.Member{}, revoked(name)
	case r.local[name]:
		return nodes.Member{}, fmt.Errorf("node %s is the server's own machine: give this one another --node-name", name)
	}
	if m := r.members[name]; m != nil {
		return m.owner, nil
	}
	return nodes.Member{}, nil
}

// admit gives a machine its first certificate for a join token.
func (r *Registry) admit(ctx context.Context, q wire.JoinRequest) ([][]byte, error) {
	chain, err := r.tryAdmit(ctx, q)
	if err != nil {
		r.o.Log.Warn("machine not taken in", "node", q.Node, "from", q.From, "reason", err)
		return nil, err
	}
	r.o.Log.Info("machine taken in", "node", q.Node, "from", q.From)
	return chain, nil
}

func (r *Registry) tryAdmit(ctx context.Context, q wire.JoinRequest) ([][]byte, error) {
	token, err := r.o.Authority.CheckToken(q.Token, q.Node)
	if err != nil {
		return nil, err
	}
	id, err := trust.ReadRequest(q.Node, q.Request)
	if err != nil {
		return nil, err
	}
	if _, err := r.mayHave(q.Node); err != nil {
		r.tellRefused(q.Node, q.From, err)
		return nil, err
	}
	err = r.o.Members.Admit(ctx, nodes.Admission{
		Member: nodes.Member{Name: q.Node, Identity: id.Key, From: q.From, Joined: r.o.Now().UTC()},
		Token:  token.ID, Uses: token.Uses, Expires: token.Expires, Replace: token.Replace,
	})
	if isRefusal(err) {
		r.tellRefused(q.Node, q.From, err) // all else may be about a name that nobody has
	}
	if err != nil {
		return nil, err
	}
	return r.o.Authority.Certify(q.Node, q.Request)
}

// renew gives a node its next certificate, for the same key.
func (r *Registry) renew(_ context.Context, c wire.Caller, request []byte) ([][]byte, error) {
	id, err := trust.ReadRequest(c.Node, request)
	if err != nil {
		return nil, err
	}
	if id.Key != c.Identity {
		return nil, errors.New("a certificate is renewed for the key that it has: to change the key, join with a token made with --replace")
	}
	r.o.Log.Info("certificate renewed", "node", c.Node, "from", c.From)
	return r.o.Authority.Certify(c.Node, request)
}
