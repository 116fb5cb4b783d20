package registry

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/trust"
	"github.com/tallyman-dev/tallyman/nodes/wire"
)

// ahead is how far, in milliseconds, the generation of routes that a node has may
// be ahead of our clock: some 35 years. The first table after a start is numbered
// by the time, and the clock of a server before us may have been ahead.
const ahead = 1 << 40

// believe takes out of a report what is not the node's to say. The planner
// holds the rest to what it decided. The caller holds mu.
func (r *Registry) believe(s *session, m *member, report *nodes.Report) {
	report.Local = s.caller.Local
	if report.Info != nil {
		info := *report.Info
		info.Labels = ownLabels(s.node, info.Labels)
		report.Info = &info
	}
	r.believeRoutes(s, report)
	if len(report.Events) == 0 {
		return
	}
	own := r.ownObjects(m.assignment, report)
	kept := slices.DeleteFunc(slices.Clone(report.Events), func(e nodes.Event) bool {
		return !own[e.Object] && e.Object != desired.Key{Kind: "Node", Name: s.node}
	})
	if n := len(report.Events) - len(kept); n > 0 {
		r.o.Log.Warn("events about what is not the node's are not taken", "node", s.node, "events", n)
	}
	report.Events = kept
}

// believeRoutes takes out a generation of routes that no server can have made: all
// tables to come would be numbered after it. The caller holds mu.
func (r *Registry) believeRoutes(s *session, report *nodes.Report) {
	now := r.o.Now().UTC()
	if r.routes != nil && report.Routes <= r.routes.Generation || report.Routes <= uint64(now.UnixMilli())+ahead {
		return
	}
	said := report.Routes
	report.Routes = 0
	if s.bragged {
		return
	}
	s.bragged = true
	r.o.Log.Warn("generation of routes is not believed", "node", s.node, "generation", said)
	r.inputs.add(s.node, Input{Events: []nodes.Event{{
		Object: desired.Key{Kind: "Node", Name: s.node}, Warning: true, Reason: "RoutesNotBelieved",
		Message: fmt.Sprintf("The node says that it has generation %d of the routes in force, which no server can have made: it counts as having none. Nothing but a changed or broken agent says so.", said),
		Source:  "server", First: now, Last: now, Count: 1,
	}}})
}

// ownLabels leaves out those that Kubernetes keeps nodes from giving themselves,
// and another's host name: pods that must not run anywhere are placed by them.
func ownLabels(node string, labels map[string]string) map[string]string {
	restricted := func(key, value string) bool {
		domain, _, found := strings.Cut(key, "/")
		return key == corev1.LabelHostname && value != node || found && (domain == corev1.LabelNamespaceNodeRestriction || strings.HasSuffix(domain, "."+corev1.LabelNamespaceNodeRestriction))
	}
	own := maps.Clone(labels)
	maps.DeleteFunc(own, restricted)
	return own
}

// ownObjects are the pods that a node has or is to have, and the claims of its
// volumes. What it only says that it has counts if it is the server's own
// machine, and pods if they bear their seal.
func (r *Registry) ownObjects(a *nodes.Assignment, report *nodes.Report) map[desired.Key]bool {
	own := map[desired.Key]bool{}
	if a != nil {
		for _, p := range a.Pods {
			own[p.Key()] = true
		}
		for _, v := range a.Volumes {
			own[v.Claim] = true
		}
	}
	for _, p := range report.Held {
		if report.Local || r.o.Bound == nil || r.o.Bound(report.Node, p) {
			own[p.Key()] = true
		}
	}
	for i := range report.Volumes {
		if v := report.Volumes[i].Held; v != nil && report.Local {
			own[v.Claim] = true
		}
	}
	return own
}

// openLedger gives back what the node kept, without what does not open. What
// bears no seal was written by an earlier version, and counts only where nobody
// but the server's own machine could have changed it.
func (r *Registry) openLedger(s *session, report *nodes.Report) {
	if r.o.Authority == nil {
		return
	}
	local := s.caller.Local
	var opened []nodes.Decision
	dropped, reason := 0, error(nil)
	for _, d := range report.Ledger {
		plain, err := r.o.Authority.Open(d)
		switch {
		case err == nil:
			opened = append(opened, plain)
		case local && errors.Is(err, trust.ErrUnsealed):
			opened = append(opened, d)
		default:
			dropped, reason = dropped+1, err
		}
	}
	if dropped > 0 {
		r.o.Log.Warn("parts of the ledger that the node keeps are not believed", "node", s.node, "entries", dropped, "reason", reason)
	}
	report.Ledger = opened
}

// sealLedger makes what the node is to keep a thing that it can neither read nor change.
func (r *Registry) sealLedger(update *wire.Update) {
	if r.o.Authority == nil {
		return
	}
	for i, d := range update.Ledger {
		sealed, err := r.o.Authority.Seal(d)
		if err != nil {
			r.o.Log.Error("a decision can't be sealed, and nodes don't keep it", "kind", d.Kind, "key", d.Key, "reason", err)
			sealed = nodes.Decision{Kind: d.Kind}
		}
		update.Ledger[i] = sealed
	}
}
