package dns

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// attempt bounds one question to one forwarder, patience all of them: a
	// little less than the 5 s after which resolvers ask again.
	attempt  = 2 * time.Second
	patience = 4500 * time.Millisecond
	// rest is how long a forwarder that did not answer is asked last.
	rest = 10 * time.Second
	// maxForwards bounds the questions under way; more fail at once.
	maxForwards = 512
	// probeEvery bounds how often a suspicion starts another search for loops.
	probeEvery = 10 * time.Second
)

// errBusy is returned while maxForwards questions are under way.
var errBusy = errors.New("too many questions under way")

// errNone is returned when there is no forwarder to ask.
var errNone = errors.New("no forwarder")

// forwarder asks other servers. Safe for concurrent use.
type forwarder struct {
	log   *slog.Logger
	slots chan struct{}
	// suspicious asks for a search for loops.
	suspicious chan struct{}

	mu sync.Mutex
	// guarded by mu
	life      context.Context // ends with Run; nil while it does not run
	upstreams []*upstream
	probes    map[string]*upstream
	probed    time.Time
}

// upstream is one forwarder; its fields but addr are guarded by forwarder.mu.
type upstream struct {
	addr netip.AddrPort
	// down is until when it is asked last.
	down time.Time
	// loops tells that a question to it came back to us.
	loops bool
}

func newForwarder(log *slog.Logger) *forwarder {
	return &forwarder{
		log:        log,
		slots:      make(chan struct{}, maxForwards),
		suspicious: make(chan struct{}, 1),
		probes:     map[string]*upstream{},
	}
}

// set replaces the upstreams and reports whether they differ from before.
func (f *forwarder) set(addrs []netip.AddrPort) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if slices.EqualFunc(f.upstreams, addrs, func(u *upstream, a netip.AddrPort) bool { return u.addr == a }) {
		return false
	}
	f.upstreams = make([]*upstream, len(addrs))
	for i, addr := range addrs {
		f.upstreams[i] = &upstream{addr: addr}
	}
	return true
}

func (f *forwarder) start(ctx context.Context) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.life = ctx
}

func (f *forwarder) stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.life = nil
}

// resolve adds to reply what the forwarders say of name; as the whole reply
// when it holds nothing yet, as the end of a CNAME chain otherwise.
func (f *forwarder) resolve(reply, q *dns.Msg, name string) {
	answer, err := f.ask(q, name)
	if err != nil {
		f.log.Debug("name not resolved", "name", name, "error", err)
		reply.Rcode = dns.RcodeServerFailure
		return
	}
	reply.Rcode = answer.Rcode
	reply.Answer = append(reply.Answer, answer.Answer...)
	reply.Ns = answer.Ns
	reply.Extra = slices.DeleteFunc(answer.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT })
}

// ask puts the question to the forwarders in order until one answers. One that
// fails the question (SERVFAIL, REFUSED) is believed only when none does better.
func (f *forwarder) ask(q *dns.Msg, name string) (*dns.Msg, error) {
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	default:
		f.suspect()
		return nil, errBusy
	}
	upstreams, life := f.usable()
	if len(upstreams) == 0 || life == nil {
		return nil, errNone
	}
	ctx, cancel := context.WithTimeout(life, patience)
	defer cancel()
	var last *dns.Msg
	var errs []error
	for _, u := range upstreams {
		answer, err := exchange(ctx, question(q, name), u.addr)
		f.mark(u, err, ctx)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if answer.Rcode != dns.RcodeServerFailure && answer.Rcode != dns.RcodeRefused {
			return answer, nil
		}
		last = answer
	}
	if last != nil {
		return last, nil
	}
	return nil, errors.Join(errs...)
}

// usable lists the upstreams that don't loop, those that answered last first.
func (f *forwarder) usable() ([]*upstream, context.Context) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	var up, down []*upstream
	for _, u := range f.upstreams {
		switch {
		case u.loops:
		case now.Before(u.down):
			down = append(down, u)
		default:
			up = append(up, u)
		}
	}
	return append(up, down...), f.life
}

// mark remembers whether u answered; when we gave up ourselves it is not to blame.
func (f *forwarder) mark(u *upstream, err error, ctx context.Context) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case err == nil:
		u.down = time.Time{}
	case !errors.Is(context.Cause(ctx), context.Canceled):
		u.down = time.Now().Add(rest)
	}
}

// question is what a forwarder is asked: our own id, nothing of the client's
// but the name, the type and the wish for signatures.
func question(q *dns.Msg, name string) *dns.Msg {
	m := new(dns.Msg).SetQuestion(name, q.Question[0].Qtype)
	m.CheckingDisabled = q.CheckingDisabled
	option := q.IsEdns0()
	return m.SetEdns0(maxUDP, option != nil && option.Do())
}

// exchange asks by UDP and, when the answer does not fit, by TCP.
func exchange(ctx context.Context, m *dns.Msg, addr netip.AddrPort) (*dns.Msg, error) {
	client := dns.Client{Net: "udp", Timeout: attempt, UDPSize: maxUDP}
	answer, _, err := client.ExchangeContext(ctx, m, addr.String())
	if err == nil && answer.Truncated {
		client.Net = "tcp"
		answer, _, err = client.ExchangeContext(ctx, m, addr.String())
	}
	if err != nil {
		return nil, err
	}
	if len(answer.Question) != 1 || !strings.EqualFold(answer.Question[0].Name, m.Question[0].Name) ||
		answer.Question[0].Qtype != m.Question[0].Qtype {
		return nil, errors.New("answer to another question")
	}
	return answer, nil
}

// suspect asks for a search for loops, since a loop is what fills all slots.
func (f *forwarder) suspect() {
	f.mu.Lock()
	due := time.Since(f.probed) > probeEvery
	f.mu.Unlock()
	if !due {
		return
	}
	select {
	case f.suspicious <- struct{}{}:
	default:
	}
}

// probe sends each upstream a question for a name that nobody else can know.
// When the question comes back to us (see ownProbe), that upstream loops.
func (f *forwarder) probe(ctx context.Context) {
	f.mu.Lock()
	f.probed = time.Now()
	names := make(map[string]*upstream, len(f.upstreams))
	for _, u := range f.upstreams {
		names[strings.ToLower(rand.Text()+"."+rand.Text()+".")] = u
	}
	for name, u := range names {
		f.probes[name] = u
	}
	f.mu.Unlock()
	var all sync.WaitGroup
	for name, u := range names {
		all.Go(func() {
			m := new(dns.Msg).SetQuestion(name, dns.TypeHINFO)
			if _, err := exchange(ctx, m, u.addr); err != nil {
				f.log.Debug("forwarder did not answer the search for loops", "forwarder", u.addr.String(), "error", err)
			}
		})
	}
	all.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	for name := range names {
		delete(f.probes, name)
	}
}

// ownProbe reports whether a question is one that we sent ourselves, and puts
// the upstream that sent it back out of use.
func (f *forwarder) ownProbe(q dns.Question) bool {
	if q.Qtype != dns.TypeHINFO {
		return false
	}
	f.mu.Lock()
	u := f.probes[dns.CanonicalName(q.Name)]
	first := u != nil && !u.loops
	if u != nil {
		u.loops = true
	}
	f.mu.Unlock()
	if first {
		f.log.Error("forwarder left out: what it is asked comes back here; give the machine another resolver",
			"forwarder", u.addr.String())
	}
	return u != nil
}
