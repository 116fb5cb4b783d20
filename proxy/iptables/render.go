package iptables

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/tallyman-dev/tallyman/proxy"
	"github.com/tallyman-dev/tallyman/proxy/netfilter"
)

// sliceBits cut the service range into 32 slices: a packet walks at most this many rules to find
// its slice and then those of the slice.
const sliceBits = 5

// nodePortSlice is the number of node ports that share a chain.
const nodePortSlice = 128

// render turns rules into chains. A pure function.
func render(r proxy.Rules) netfilter.Ruleset {
	w := writer{rules: r, out: netfilter.Ruleset{}, ranges: map[string]string{}, nodePorts: map[string]bool{}}
	w.skeleton()
	for _, route := range r.Routes {
		w.route(route)
	}
	w.hostPorts()
	w.dispatch()
	w.hairpins()
	return w.out
}

type writer struct {
	rules proxy.Rules
	out   netfilter.Ruleset
	// ranges are the slices of the service range in use: chain → prefix.
	ranges map[string]string
	// nodePorts are the rules that lead to the slices of node ports in use.
	nodePorts map[string]bool
	// external tells that some service has an address outside the service range.
	external bool
	// rejectLocal tells that some node port has no endpoint.
	rejectLocal bool
}

func (w *writer) nat(chain string, rules ...string)    { w.out.Add("nat", chain, rules...) }
func (w *writer) filter(chain string, rules ...string) { w.out.Add("filter", chain, rules...) }

// skeleton writes what does not depend on any service.
func (w *writer) skeleton() {
	at := w.rules.Local
	w.filter(firewall,
		"! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP")
	if at.ClusterCIDR.IsValid() {
		w.filter(forward, "-s "+at.ClusterCIDR.Masked().String()+" -m conntrack --ctstate INVALID -j DROP")
	}
	w.filter(forward,
		"-m conntrack --ctstate NEW -j "+reject,
		isMarked+" -j ACCEPT",
		"-m conntrack --ctstate RELATED,ESTABLISHED -m conntrack --ctstate DNAT -j ACCEPT")
	w.filter(reject)
	w.nat(services)
	w.nat(postrouting)
}

// route writes one service port: its balancing chains and the rules that lead there.
func (w *writer) route(r proxy.Route) {
	all, here := v4(r.Anywhere()), v4(r.Here)
	name := digest(r.ID())
	if len(all) > 0 {
		w.balance(balancePrefix+name, r, all)
	}
	if len(here) > 0 {
		w.balance(herePrefix+name, r, here)
	}
	w.clusterAddrs(r, name)
	if len(r.ExternalIPs) == 0 && r.NodePort == 0 {
		return
	}
	if len(all) > 0 {
		w.entry(r, name, len(here) > 0)
	}
	w.externalAddrs(r, name, len(all) > 0)
	w.nodePort(r, name, len(all) > 0)
}

// clusterAddrs leads the cluster addresses to the endpoints. Without any,
// there is no rule: everything that reaches the service range unrouted is
// rejected. What only this node has no endpoint for is dropped, as kube-proxy has it.
func (w *writer) clusterAddrs(r proxy.Route, name string) {
	if len(v4(r.Internal())) == 0 {
		for _, addr := range r.ClusterIPs {
			if addr.Is4() && len(v4(r.Endpoints)) > 0 {
				w.filter(reject, "-d "+addr.String()+"/32 "+port(r, r.Port)+" -j DROP")
			}
		}
		return
	}
	to := balancePrefix + name
	if r.InternalLocal {
		to = herePrefix + name
	}
	for _, addr := range r.ClusterIPs {
		if addr.Is4() {
			w.nat(w.rangeChain(addr), "-d "+addr.String()+"/32 "+port(r, r.Port)+" -j "+to)
		}
	}
}

// rangeChain is the chain that holds the rules of a cluster address.
func (w *writer) rangeChain(addr netip.Addr) string {
	cidr := w.rules.Local.ServiceCIDR
	if !cidr.IsValid() || !cidr.Contains(addr) {
		w.external = true
		return external
	}
	prefix, err := addr.Prefix(min(cidr.Bits()+sliceBits, addr.BitLen()))
	if err != nil {
		w.external = true
		return external
	}
	chain := rangePrefix + prefix.Addr().String()
	w.ranges[chain] = prefix.String()
	return chain
}

// entry writes what traffic from outside meets first: whether its source is
// replaced, and which endpoints it may go to.
func (w *writer) entry(r proxy.Route, name string, here bool) {
	chain, all := entryPrefix+name, "-j "+balancePrefix+name
	if !r.ExternalLocal {
		w.nat(chain, markMasquerade, all)
		return
	}
	if cidr := w.rules.Local.ClusterCIDR; cidr.IsValid() {
		w.nat(chain, "-s "+cidr.Masked().String()+" "+all)
	}
	w.nat(chain, "-m addrtype --src-type LOCAL "+markMasquerade, "-m addrtype --src-type LOCAL "+all)
	if here {
		w.nat(chain, "-j "+herePrefix+name)
	}
}

func (w *writer) externalAddrs(r proxy.Route, name string, routed bool) {
	for _, addr := range r.ExternalIPs {
		if !addr.Is4() {
			continue
		}
		match := "-d " + addr.String() + "/32 " + port(r, r.Port)
		if routed {
			w.external = true
			w.nat(external, match+" -j "+entryPrefix+name)
		}
		if target := w.dead(r); target != "" {
			w.filter(reject, match+" "+target)
		}
	}
}

func (w *writer) nodePort(r proxy.Route, name string, routed bool) {
	if r.NodePort == 0 {
		return
	}
	match := port(r, r.NodePort)
	if routed {
		first := r.NodePort / nodePortSlice * nodePortSlice
		chain := fmt.Sprintf("%s%d", portsPrefix, first)
		proto := strings.ToLower(string(r.Protocol))
		lead := fmt.Sprintf("-p %s -m %s --dport %d:%d -j %s", proto, proto, first, first+nodePortSlice-1, chain)
		w.nodePorts[lead] = true
		w.nat(chain, match+" -j "+entryPrefix+name)
	}
	if target := w.dead(r); target != "" {
		w.rejectLocal = true
		w.filter(rejectLocal, match+" "+target)
	}
}

// dead is what becomes of traffic from outside that nobody answers: refused
// when the service has no endpoint at all, dropped when only this node has
// none, so that whoever spreads over the nodes tries another.
func (w *writer) dead(r proxy.Route) string {
	switch {
	case len(v4(r.Endpoints)) == 0 && r.Protocol == proxy.TCP:
		return refuseTCP
	case len(v4(r.Endpoints)) == 0:
		return refuse
	case len(v4(r.External())) == 0:
		return "-j DROP"
	}
	return ""
}

// balance spreads evenly: rule i of n takes one in n-i of what reaches it.
func (w *writer) balance(chain string, r proxy.Route, endpoints []netip.AddrPort) {
	proto := strings.ToLower(string(r.Protocol))
	if r.Affinity > 0 {
		w.sticky(chain, r, endpoints)
		return
	}
	rules := make([]string, len(endpoints))
	for i, e := range endpoints {
		rules[i] = "-p " + proto + " -m " + proto + chance(len(endpoints)-i) + " -j DNAT --to-destination " + e.String()
	}
	w.nat(chain, rules...)
}

// sticky sends a client where it was last, if that was not too long ago.
func (w *writer) sticky(chain string, r proxy.Route, endpoints []netip.AddrPort) {
	proto := strings.ToLower(string(r.Protocol))
	seconds := max(1, int(r.Affinity.Seconds()))
	var known, choice []string
	for i, e := range endpoints {
		sep := stickyPrefix + digest(chain+" "+e.String())
		known = append(known, fmt.Sprintf(
			"-m recent --rcheck --seconds %d --reap --name %s --mask 255.255.255.255 --rsource -j %s", seconds, sep, sep,
		))
		choice = append(choice, strings.TrimPrefix(chance(len(endpoints)-i)+" -j "+sep, " "))
		w.nat(sep, "-p "+proto+" -m recent --set --name "+sep+" --mask 255.255.255.255 --rsource -m "+proto+
			" -j DNAT --to-destination "+e.String())
	}
	w.nat(chain, known...)
	w.nat(chain, choice...)
}

// chance matches one packet in n, as iptables-save prints what the kernel keeps.
func chance(n int) string {
	if n == 1 {
		return ""
	}
	const unit = 1 << 31
	return fmt.Sprintf(" -m statistic --mode random --probability %.11f", math.Round(unit/float64(n))/unit)
}

func (w *writer) hostPorts() {
	for _, h := range w.rules.HostPorts {
		if !h.Endpoint.Addr().Is4() || h.HostIP.IsValid() && !h.HostIP.Is4() {
			continue
		}
		proto := strings.ToLower(string(h.Protocol))
		match := fmt.Sprintf("-p %s -m %s --dport %d", proto, proto, h.HostPort)
		if h.HostIP.IsValid() && !h.HostIP.IsUnspecified() {
			match = "-d " + h.HostIP.String() + "/32 " + match
		}
		w.nat(hostPorts,
			// What comes from the machine itself may have a source that only the machine knows.
			"-s 127.0.0.0/8 "+match+" "+markMasquerade,
			match+" -j DNAT --to-destination "+h.Endpoint.String())
	}
}

// dispatch writes the way from the kernel's chains to the slices.
func (w *writer) dispatch() {
	at := w.rules.Local
	if len(w.ranges) > 0 {
		w.nat(services, "-d "+at.ServiceCIDR.Masked().String()+" -j "+cluster)
		if at.ClusterCIDR.IsValid() {
			w.nat(cluster, "! -s "+at.ClusterCIDR.Masked().String()+" "+markMasquerade)
		}
		for _, chain := range sortedKeys(w.ranges) {
			w.nat(cluster, "-d "+w.ranges[chain]+" -j "+chain)
		}
	}
	if w.external {
		w.nat(services, "-j "+external)
	}
	if len(w.out["nat"][hostPorts]) > 0 {
		w.nat(local, "-j "+hostPorts)
	}
	w.nat(local, sortedKeys(w.nodePorts)...)
	w.nat(services, "-m addrtype --dst-type LOCAL -j "+local)
	if at.ServiceCIDR.IsValid() {
		to := "-d " + at.ServiceCIDR.Masked().String()
		w.filter(reject, to+" -p tcp -m addrtype ! --dst-type LOCAL "+refuseTCP, to+" -m addrtype ! --dst-type LOCAL "+refuse)
	}
	if w.rejectLocal {
		w.filter(reject, "-m addrtype --dst-type LOCAL -j "+rejectLocal)
	}
}

// hairpins make a pod that reaches itself through a service see the gateway as
// its peer: it would answer itself directly otherwise.
func (w *writer) hairpins() {
	at := w.rules.Local
	if pods := w.localPods(); len(pods) > 0 {
		cidr := at.PodCIDR.Masked().String()
		w.nat(postrouting, "-s "+cidr+" -d "+cidr+" -m conntrack --ctstate DNAT -j "+hairpin)
		for _, pod := range pods {
			w.nat(hairpin, "-s "+pod.String()+"/32 -d "+pod.String()+"/32 -j MASQUERADE --random-fully")
		}
	}
	w.nat(postrouting,
		"-m mark ! --mark 0x2000/0x2000 -j RETURN",
		clearMark,
		"-j MASQUERADE --random-fully")
}

// localPods are the pods of this node that something leads to, sorted.
func (w *writer) localPods() []netip.Addr {
	cidr := w.rules.Local.PodCIDR
	seen := map[netip.Addr]bool{}
	add := func(a netip.Addr) {
		if cidr.IsValid() && a.Is4() && cidr.Contains(a) {
			seen[a] = true
		}
	}
	for _, r := range w.rules.Routes {
		for _, e := range r.Endpoints {
			add(e.Addr())
		}
	}
	for _, h := range w.rules.HostPorts {
		add(h.Endpoint.Addr())
	}
	pods := make([]netip.Addr, 0, len(seen))
	for a := range seen {
		pods = append(pods, a)
	}
	slices.SortFunc(pods, netip.Addr.Compare)
	return pods
}

// port matches the protocol and destination port, with the route's name for
// whoever reads the rules.
func port(r proxy.Route, number uint16) string {
	proto := strings.ToLower(string(r.Protocol))
	name := r.Service
	if r.PortName != "" {
		name += ":" + r.PortName
	}
	return "-p " + proto + ` -m comment --comment "` + name + `" -m ` + proto + " --dport " + strconv.Itoa(int(number))
}

func v4(addrs []netip.AddrPort) []netip.AddrPort {
	if !slices.ContainsFunc(addrs, func(a netip.AddrPort) bool { return !a.Addr().Is4() }) {
		return addrs
	}
	return slices.DeleteFunc(slices.Clone(addrs), func(a netip.AddrPort) bool { return !a.Addr().Is4() })
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// digest makes a name of sixteen characters: chain names have at most 28.
func digest(name string) string {
	sum := sha256.Sum256([]byte(name))
	return base32.StdEncoding.EncodeToString(sum[:10])
}
