package dns

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"github.com/tallyman-dev/tallyman/proxy"
)

// specification is the version of the Kubernetes DNS specification that the
// dns-version record names.
const specification = "1.1.0"

// nameserver is our own name below the cluster's domain.
const nameserver = "ns.dns."

// index is a route table turned into names. Immutable.
type index struct {
	// zone is the cluster's domain, lower case, with final dot.
	zone   string
	serial uint32
	// names hold every name that exists below zone, lower case with final dot;
	// those that only have names below them are there too, without records.
	names map[string]*records
	// reverse holds names below in-addr.arpa and ip6.arpa.
	reverse map[string][]string
}

// records are what one name stands for.
type records struct {
	addrs []netip.Addr
	srvs  []service
	cname string
	txt   string
}

// service is one SRV record.
type service struct {
	port   uint16
	target string
}

// newIndex takes the names from t; addrs are the server's own.
func newIndex(t *proxy.Table, addrs []netip.AddrPort) *index {
	zone := dns.CanonicalName(t.Domain)
	x := &index{
		zone:    zone,
		serial:  uint32(t.Generation),
		names:   make(map[string]*records, 4*len(t.Services)+8),
		reverse: make(map[string][]string, len(t.Services)),
	}
	x.at(zone)
	x.at("svc." + zone)
	x.at("pod." + zone)
	x.at("dns-version." + zone).txt = specification
	for _, addr := range addrs {
		if ns := x.at(nameserver + zone); !addr.Addr().IsUnspecified() && !slices.Contains(ns.addrs, addr.Addr()) {
			ns.addrs = append(ns.addrs, addr.Addr())
		}
	}
	for _, s := range t.Services {
		x.add(s)
	}
	return x
}

// at gives the records of a name inside the zone, making it and the names
// above it exist.
func (x *index) at(name string) *records {
	if r := x.names[name]; r != nil {
		return r
	}
	r := &records{}
	x.names[name] = r
	if len(name) > len(x.zone) {
		_, above, _ := strings.Cut(name, ".")
		x.at(above)
	}
	return r
}

func (x *index) add(s *proxy.Service) {
	name := strings.ToLower(s.Name + "." + s.Namespace + ".svc." + x.zone)
	r := x.at(name)
	switch {
	case s.ExternalName != "":
		r.cname = dns.Fqdn(s.ExternalName)
	case s.Headless:
		x.addHeadless(s, name, r)
	default:
		r.addrs = s.ClusterIPs
		for _, ip := range s.ClusterIPs {
			x.addReverse(ip, name)
		}
		for _, p := range s.Ports {
			if p.Name != "" {
				x.addPort(p, name, service{port: p.Port, target: name})
			}
		}
	}
}

func (x *index) addHeadless(s *proxy.Service, name string, r *records) {
	for _, p := range s.Ports {
		for _, e := range p.Endpoints {
			target := strings.ToLower(endpointLabel(e)) + "." + name
			own := x.at(target)
			if !slices.Contains(own.addrs, e.Addr) {
				own.addrs = append(own.addrs, e.Addr)
				r.addrs = append(r.addrs, e.Addr)
				x.addReverse(e.Addr, target)
			}
			if p.Name != "" {
				x.addPort(p, name, service{port: e.Port, target: target})
			}
		}
	}
	slices.SortFunc(r.addrs, netip.Addr.Compare)
	r.addrs = slices.Compact(r.addrs)
}

func (x *index) addPort(p proxy.Port, name string, record service) {
	port := x.at(strings.ToLower("_" + p.Name + "._" + string(p.Protocol) + "." + name))
	// Endpoints of two addresses under one hostname share one record.
	if !slices.Contains(port.srvs, record) {
		port.srvs = append(port.srvs, record)
	}
}

func (x *index) addReverse(ip netip.Addr, name string) {
	reverse, err := dns.ReverseAddr(ip.String())
	if err != nil {
		return
	}
	if !slices.Contains(x.reverse[reverse], name) {
		x.reverse[reverse] = append(x.reverse[reverse], name)
	}
}

// endpointLabel is the endpoint's hostname, or its address with dashes.
func endpointLabel(e proxy.Endpoint) string {
	if e.Hostname != "" {
		return e.Hostname
	}
	return strings.NewReplacer(".", "-", ":", "-").Replace(e.Addr.String())
}

// inside reports whether a canonical name belongs to the cluster.
func (x *index) inside(name string) bool {
	return name == x.zone || strings.HasSuffix(name, "."+x.zone)
}

// find gives the records of a canonical name inside the zone, or nil when the
// name does not exist.
func (x *index) find(name string) *records {
	if r := x.names[name]; r != nil {
		return r
	}
	return x.findPod(name)
}

// findPod reads an address out of a name like 10-244-0-7.default.pod.<zone>.
// Namespaces are not known here, so that any may stand there.
func (x *index) findPod(name string) *records {
	labels, found := strings.CutSuffix(name, ".pod."+x.zone)
	if !found || labels == "" {
		return nil
	}
	label, namespace, found := strings.Cut(labels, ".")
	if !found {
		return &records{}
	}
	if strings.Contains(namespace, ".") {
		return nil
	}
	separator := ":"
	if strings.Count(label, "-") == 3 && !strings.Contains(label, "--") {
		separator = "."
	}
	ip, err := netip.ParseAddr(strings.ReplaceAll(label, "-", separator))
	if err != nil {
		return nil
	}
	return &records{addrs: []netip.Addr{ip}}
}
