package iptables

import (
	"strings"

	"github.com/tallyman-dev/tallyman/proxy/netfilter"
)

// The chains of the backend; DESIGN.md draws how they lead into each other.
const (
	services      = "TALLY-SERVICES"
	cluster       = "TALLY-CLUSTER"
	external      = "TALLY-EXTERNAL"
	local         = "TALLY-LOCAL"
	hostPorts     = "TALLY-HOSTPORTS"
	postrouting   = "TALLY-POSTROUTING"
	hairpin       = "TALLY-HAIRPIN"
	forward       = "TALLY-FORWARD"
	reject        = "TALLY-REJECT"
	rejectLocal   = "TALLY-REJECT-LOCAL"
	firewall      = "TALLY-FIREWALL"
	rangePrefix   = "TALLY-RANGE-" // a slice of the service addresses
	portsPrefix   = "TALLY-PORTS-" // a slice of the node ports
	entryPrefix   = "TALLY-EXT-"   // a service port as seen from outside
	balancePrefix = "TALLY-SVC-"   // all endpoints of a service port
	herePrefix    = "TALLY-HERE-"  // its endpoints on this node
	stickyPrefix  = "TALLY-SEP-"   // one endpoint of a service port with affinity
)

// own tells the backend's chains from those of everybody else, other parts of
// Tallyman included.
func own(chain string) bool {
	switch chain {
	case services, cluster, external, local, hostPorts, postrouting, hairpin, forward, reject, rejectLocal, firewall:
		return true
	}
	for _, prefix := range []string{rangePrefix, portsPrefix, entryPrefix, balancePrefix, herePrefix, stickyPrefix} {
		if strings.HasPrefix(chain, prefix) {
			return true
		}
	}
	return false
}

// The mark bit of packets whose source is to be replaced, and the refusals.
const (
	markMasquerade = "-j MARK --set-xmark 0x2000/0x2000"
	clearMark      = "-j MARK --set-xmark 0x2000/0x0"
	isMarked       = "-m mark --mark 0x2000/0x2000"
	// The kernel limits how many ICMP errors it sends, but not resets.
	refuseTCP = "-j REJECT --reject-with tcp-reset"
	refuse    = "-j REJECT --reject-with icmp-port-unreachable"
)

// jumps lead from the kernel's chains into ours.
func jumps() []netfilter.Jump {
	return []netfilter.Jump{
		{Table: "nat", Chain: "PREROUTING", Rule: "-j " + services},
		{Table: "nat", Chain: "OUTPUT", Rule: "-j " + services},
		{Table: "nat", Chain: "POSTROUTING", Rule: "-j " + postrouting},
		{Table: "filter", Chain: "INPUT", Rule: "-j " + firewall},
		{Table: "filter", Chain: "INPUT", Rule: "-m conntrack --ctstate NEW -j " + reject},
		{Table: "filter", Chain: "FORWARD", Rule: "-j " + forward},
		{Table: "filter", Chain: "OUTPUT", Rule: "-m conntrack --ctstate NEW -j " + reject},
	}
}
