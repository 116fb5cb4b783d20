package spec

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
)

// maxHostname is what the kernel takes.
const maxHostname = 64

// Hostname is the pod's own name: as the manifest says or the pod's, cut to
// what the kernel takes.
func Hostname(p *nodes.Pod) string {
	name := p.Name
	if h, _ := p.HostName(); h != "" {
		name = h
	}
	if o := p.Template.Spec.HostnameOverride; o != nil {
		name = *o
	}
	if len(name) > maxHostname-1 {
		name = strings.TrimRight(name[:maxHostname-1], "-.")
	}
	return name
}

// Domain is the name below which the pod's hostname stands; empty without a
// subdomain.
func Domain(p *nodes.Pod, cluster string) string {
	_, subdomain := p.HostName()
	if subdomain == "" || p.Template.Spec.HostnameOverride != nil {
		return ""
	}
	return fmt.Sprintf("%s.%s.svc.%s", subdomain, p.Namespace, cluster)
}

// KernelHostname is what the pod's programs are told as their host's name: with
// the domain, if the manifest has setHostnameAsFQDN.
func KernelHostname(p *nodes.Pod, cluster string) (string, error) {
	name, domain := Hostname(p), Domain(p, cluster)
	if full := p.Template.Spec.SetHostnameAsFQDN; full == nil || !*full || domain == "" {
		return name, nil
	}
	name += "." + domain
	if len(name) > maxHostname {
		return "", fmt.Errorf("setHostnameAsFQDN: %s is too long for a host's name (%d characters, the kernel takes %d)", name, len(name), maxHostname)
	}
	return name, nil
}

// Hosts is the pod's /etc/hosts. machine is the node's own file, used for pods
// on the host's network.
func Hosts(p *nodes.Pod, ip netip.Addr, cluster string, machine []byte) []byte {
	var b strings.Builder
	if p.Template.Spec.HostNetwork {
		b.Write(machine)
		if !strings.HasSuffix(b.String(), "\n") {
			b.WriteByte('\n')
		}
	} else {
		b.WriteString("# Written by Tallyman; changes are overwritten.\n")
		b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
		b.WriteString("fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n")
		host := Hostname(p)
		if domain := Domain(p, cluster); domain != "" {
			fmt.Fprintf(&b, "%s\t%s.%s\t%s\n", ip, host, domain, host)
		} else {
			fmt.Fprintf(&b, "%s\t%s\n", ip, host)
		}
	}
	for _, alias := range p.Template.Spec.HostAliases {
		fmt.Fprintf(&b, "%s\t%s\n", alias.IP, strings.Join(alias.Hostnames, "\t"))
	}
	return []byte(b.String())
}

// Resolver is what a resolv.conf says.
type Resolver struct {
	Servers, Searches, Options []string
}

const (
	maxServers  = 3
	maxSearches = 32
)

// ParseResolver reads a resolv.conf. Unknown lines are left out.
func ParseResolver(text []byte) Resolver {
	var r Resolver
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		switch words[0] {
		case "nameserver":
			r.Servers = append(r.Servers, words[1])
		case "search", "domain":
			r.Searches = words[1:]
		case "options":
			r.Options = append(r.Options, words[1:]...)
		}
	}
	return r
}

// ResolverFor is what the pod's dnsPolicy and dnsConfig ask for. server is the
// cluster's DNS on this node, machine the node's own resolver.
func ResolverFor(p *nodes.Pod, cluster string, server netip.Addr, machine Resolver) Resolver {
	s := &p.Template.Spec
	var r Resolver
	switch {
	case s.DNSPolicy == corev1.DNSNone:
	case s.DNSPolicy == corev1.DNSDefault, s.DNSPolicy == corev1.DNSClusterFirst && s.HostNetwork:
		r = machine
	default:
		r = Resolver{
			Servers: []string{server.String()},
			Searches: append([]string{
				p.Namespace + ".svc." + cluster, "svc." + cluster, cluster,
			}, machine.Searches...),
			Options: []string{"ndots:5"},
		}
	}
	return r.with(s.DNSConfig)
}

// with adds a manifest's dnsConfig; its options win over those of the same name.
func (r Resolver) with(c *corev1.PodDNSConfig) Resolver {
	if c == nil {
		return r
	}
	r.Servers = union(r.Servers, c.Nameservers)
	r.Searches = union(r.Searches, c.Searches)
	options := slices.Clone(r.Options)
	for _, o := range c.Options {
		options = slices.DeleteFunc(options, func(have string) bool {
			name, _, _ := strings.Cut(have, ":")
			return name == o.Name
		})
		word := o.Name
		if o.Value != nil {
			word += ":" + *o.Value
		}
		options = append(options, word)
	}
	r.Options = options
	return r
}

func union(a, b []string) []string {
	out := slices.Clone(a)
	for _, w := range b {
		if !slices.Contains(out, w) {
			out = append(out, w)
		}
	}
	return out
}

// Bytes is the resolv.conf.
func (r Resolver) Bytes() []byte {
	var b strings.Builder
	for _, s := range r.Servers[:min(len(r.Servers), maxServers)] {
		b.WriteString("nameserver " + s + "\n")
	}
	if len(r.Searches) > 0 {
		b.WriteString("search " + strings.Join(r.Searches[:min(len(r.Searches), maxSearches)], " ") + "\n")
	}
	if len(r.Options) > 0 {
		b.WriteString("options " + strings.Join(r.Options, " ") + "\n")
	}
	return []byte(b.String())
}
