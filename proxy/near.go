package proxy

import "slices"

// location is where a node is among the others.
type location struct {
	node string
	// zone that the node is in, and that of each node; empty when unknown.
	zone  string
	zones map[string]string
}

func locate(node string, all []Node) location {
	at := location{node: node, zones: make(map[string]string, len(all))}
	for _, n := range all {
		at.zones[n.Name] = n.Zone
	}
	at.zone = at.zones[node]
	return at
}

// here are the endpoints that run on the node.
func (at location) here(endpoints []Endpoint) []Endpoint {
	return keep(endpoints, func(e Endpoint) bool { return e.Node == at.node && at.node != "" })
}

// near are the endpoints that a preference picks; nil when it picks none, or
// all. As Kubernetes has it, a preference counts only while the node, or the
// zone, of every endpoint is known.
func (at location) near(p Preference, endpoints []Endpoint) []Endpoint {
	if p == NoPreference {
		return nil
	}
	if p == SameNode && !slices.ContainsFunc(endpoints, func(e Endpoint) bool { return e.Node == "" }) {
		if here := at.here(endpoints); len(here) > 0 {
			return fewer(here, endpoints)
		}
	}
	if at.zone == "" || slices.ContainsFunc(endpoints, func(e Endpoint) bool { return at.zones[e.Node] == "" }) {
		return nil
	}
	return fewer(keep(endpoints, func(e Endpoint) bool { return at.zones[e.Node] == at.zone }), endpoints)
}

// fewer is a choice, or nil when it is everything or nothing.
func fewer(choice, all []Endpoint) []Endpoint {
	if len(choice) == len(all) || len(choice) == 0 {
		return nil
	}
	return choice
}

func keep(endpoints []Endpoint, want func(Endpoint) bool) []Endpoint {
	return slices.DeleteFunc(slices.Clone(endpoints), func(e Endpoint) bool { return !want(e) })
}
