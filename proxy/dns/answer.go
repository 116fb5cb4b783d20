package dns

import (
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

const (
	// ttl of every record of the cluster, in seconds.
	ttl = 5
	// maxChain bounds how many CNAMEs are followed.
	maxChain = 8
)

// answer makes the reply to one query, without the care for its size.
func (s *Server) answer(q *dns.Msg) *dns.Msg {
	reply := new(dns.Msg).SetReply(q)
	reply.RecursionAvailable = true
	reply.Compress = true
	question := q.Question[0]
	x := s.index.Load()
	switch {
	case q.IsEdns0() != nil && q.IsEdns0().Version() != 0:
		reply.Rcode = dns.RcodeBadVers
	case question.Qclass != dns.ClassINET || refused(question.Qtype):
		reply.Rcode = dns.RcodeRefused
	case s.forward.ownProbe(question):
		reply.Rcode = dns.RcodeRefused
	case x == nil:
		reply.Rcode = dns.RcodeServerFailure
	default:
		s.resolve(x, reply, q, question.Name, 0)
	}
	return reply
}

// refused tells the types that only serve to copy zones or to amplify.
func refused(qtype uint16) bool {
	return qtype == dns.TypeANY || qtype == dns.TypeAXFR || qtype == dns.TypeIXFR
}

// resolve adds to reply what is known of name, following CNAMEs; depth counts them.
func (s *Server) resolve(x *index, reply, q *dns.Msg, name string, depth int) {
	qtype := q.Question[0].Qtype
	canonical := dns.CanonicalName(name)
	if targets, found := x.reverse[canonical]; found {
		s.addPointers(x, reply, name, targets, qtype)
		return
	}
	if !x.inside(canonical) {
		s.forward.resolve(reply, q, name)
		return
	}
	// The answer is ours as long as the name asked for is.
	if depth == 0 {
		reply.Authoritative = true
	}
	r := x.find(canonical)
	if r == nil {
		reply.Rcode = dns.RcodeNameError
		reply.Ns = append(reply.Ns, x.soa(x.zone))
		return
	}
	if r.cname != "" {
		s.addAlias(x, reply, q, name, r.cname, depth)
		return
	}
	before := len(reply.Answer)
	s.addRecords(x, reply, name, canonical, r, qtype)
	if len(reply.Answer) == before {
		reply.Ns = append(reply.Ns, x.soa(x.zone))
	}
}

// addAlias answers with a CNAME and, unless that was all the question, with
// what it leads to.
func (s *Server) addAlias(x *index, reply, q *dns.Msg, name, target string, depth int) {
	reply.Answer = append(reply.Answer, &dns.CNAME{Hdr: header(name, dns.TypeCNAME), Target: target})
	if q.Question[0].Qtype == dns.TypeCNAME {
		return
	}
	if depth == maxChain {
		reply.Rcode = dns.RcodeServerFailure
		return
	}
	s.resolve(x, reply, q, target, depth+1)
}

func (s *Server) addRecords(x *index, reply *dns.Msg, name, canonical string, r *records, qtype uint16) {
	switch qtype {
	case dns.TypeA, dns.TypeAAAA:
		reply.Answer = append(reply.Answer, s.addresses(name, r.addrs, qtype)...)
	case dns.TypeSRV:
		s.addServices(x, reply, name, r.srvs)
	case dns.TypeTXT:
		if r.txt != "" {
			reply.Answer = append(reply.Answer, &dns.TXT{Hdr: header(name, dns.TypeTXT), Txt: []string{r.txt}})
		}
	case dns.TypeSOA:
		if canonical == x.zone {
			reply.Answer = append(reply.Answer, x.soa(name))
		}
	case dns.TypeNS:
		if canonical == x.zone {
			reply.Answer = append(reply.Answer, &dns.NS{Hdr: header(name, dns.TypeNS), Ns: nameserver + x.zone})
		}
	}
}

// addresses gives the addresses of one family, beginning with another one
// each time, so that clients that take the first spread out.
func (s *Server) addresses(name string, addrs []netip.Addr, qtype uint16) []dns.RR {
	family := make([]dns.RR, 0, len(addrs))
	for _, ip := range addrs {
		switch {
		case qtype == dns.TypeA && ip.Is4():
			family = append(family, &dns.A{Hdr: header(name, dns.TypeA), A: ip.AsSlice()})
		case qtype == dns.TypeAAAA && ip.Is6():
			family = append(family, &dns.AAAA{Hdr: header(name, dns.TypeAAAA), AAAA: ip.AsSlice()})
		}
	}
	if len(family) < 2 {
		return family
	}
	first := int(s.turn.Add(1) % uint32(len(family)))
	return append(family[first:len(family):len(family)], family[:first]...)
}

// addServices answers with SRV records and, besides, the addresses that they
// lead to, each once.
func (s *Server) addServices(x *index, reply *dns.Msg, name string, srvs []service) {
	told := make(map[string]bool, len(srvs))
	for _, srv := range srvs {
		reply.Answer = append(reply.Answer, &dns.SRV{
			Hdr: header(name, dns.TypeSRV), Priority: 0, Weight: 100, Port: srv.port, Target: srv.target,
		})
		r := x.names[srv.target]
		if told[srv.target] || r == nil {
			continue
		}
		told[srv.target] = true
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
			reply.Extra = append(reply.Extra, s.addresses(srv.target, r.addrs, qtype)...)
		}
	}
}

func (s *Server) addPointers(x *index, reply *dns.Msg, name string, targets []string, qtype uint16) {
	reply.Authoritative = true
	if qtype != dns.TypePTR {
		reply.Ns = append(reply.Ns, x.soa(name))
		return
	}
	for _, target := range targets {
		reply.Answer = append(reply.Answer, &dns.PTR{Hdr: header(name, dns.TypePTR), Ptr: target})
	}
}

// soa bounds how long a resolver remembers that something is not there.
func (x *index) soa(owner string) *dns.SOA {
	return &dns.SOA{
		Hdr: header(owner, dns.TypeSOA), Ns: nameserver + x.zone, Mbox: "hostmaster." + x.zone,
		Serial: x.serial, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: ttl,
	}
}

func header(name string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
}

// finish fits reply to what the client can take: its size, and EDNS0 only if
// it spoke it.
func finish(reply, q *dns.Msg, network string) {
	size := dns.MinMsgSize
	if option := q.IsEdns0(); option != nil {
		size = max(size, int(option.UDPSize()))
		// BADVERS lies beyond the four bits of a plain header.
		reply.SetEdns0(maxUDP, option.Do())
	}
	if strings.HasPrefix(network, "tcp") {
		reply.Truncate(dns.MaxMsgSize)
		return
	}
	reply.Truncate(min(size, maxUDP))
}
