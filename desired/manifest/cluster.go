package manifest

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/tallyman-dev/tallyman/desired"
)

// validateCluster checks Tallyman's own kind.
func validateCluster(v runtime.Object) (field.ErrorList, error) {
	c, ok := v.(*desired.Cluster)
	if !ok {
		return nil, fmt.Errorf("validate Cluster: got a %T", v)
	}
	errs := validateMeta(&c.ObjectMeta, false)
	_, more := settings(c)
	return append(errs, more...), nil
}

// settings reads a Cluster object's values; what is not valid keeps its default.
func settings(c *desired.Cluster) (desired.Settings, field.ErrorList) {
	s := desired.DefaultSettings()
	spec := field.NewPath("spec")
	var errs field.ErrorList
	switch c.Spec.Unsupported {
	case "", "reject":
	case "warn":
		s.WarnUnsupported = true
	default:
		errs = append(errs, field.NotSupported(spec.Child("unsupported"), c.Spec.Unsupported, []string{"reject", "warn"}))
	}
	if g := c.Spec.Guard; g != nil {
		errs = append(errs, guard(g, &s.Guard, spec.Child("guard"))...)
	}
	if n := c.Spec.Network; n != nil {
		errs = append(errs, network(n, &s.Network, spec.Child("network"))...)
	}
	if n := c.Spec.Nodes; n != nil {
		errs = append(errs, nodeSettings(n, &s.Nodes, spec.Child("nodes"))...)
	}
	if p := c.Spec.Placement; p != nil && p.Strategy != "" {
		errs = append(errs, oneOf(p.Strategy, &s.Placement, spec.Child("placement", "strategy"), "pack", "spread")...)
	}
	if p := c.Spec.PodSecurity; p != nil && p.Enforce != "" {
		levels := []string{"privileged", "baseline", "restricted"}
		if !slices.Contains(levels, p.Enforce) {
			errs = append(errs, field.NotSupported(spec.Child("podSecurity", "enforce"), p.Enforce, levels))
		}
		s.EnforcePodSecurity = p.Enforce
	}
	if k := c.Spec.Storage; k != nil && k.Keep != "" {
		keep, err := time.ParseDuration(k.Keep)
		if err != nil || keep < 0 {
			errs = append(errs, field.Invalid(spec.Child("storage", "keep"), k.Keep, "must be a duration that is not negative, such as 24h"))
		}
		s.KeepData = keep
	}
	if m := c.Spec.Metrics; m != nil {
		errs = append(errs, metrics(m, &s, spec.Child("metrics"))...)
	}
	if a := c.Spec.ServiceAccounts; a != nil && a.Issuer != "" {
		if u, err := url.Parse(a.Issuer); err != nil || u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
			errs = append(errs, field.Invalid(spec.Child("serviceAccounts", "issuer"), a.Issuer, "must be an https URL without query and fragment"))
		}
		s.Issuer = a.Issuer
	}
	return s, errs
}

func nodeSettings(spec *desired.NodesSpec, out *desired.Nodes, at *field.Path) (errs field.ErrorList) {
	read := func(text string, to *time.Duration, least time.Duration, name string) {
		if text == "" {
			return
		}
		d, err := time.ParseDuration(text)
		if err != nil || d < least || d > 24*time.Hour {
			errs = append(errs, field.Invalid(at.Child(name), text, fmt.Sprintf("must be a duration from %s to 24h", least)))
			return
		}
		*to = d
	}
	read(spec.SilentAfter, &out.SilentAfter, 2*time.Second, "silentAfter")
	read(spec.Tolerate, &out.Tolerate, 0, "tolerate")
	read(spec.Lease, &out.Lease, 3*time.Second, "lease")
	if spec.Failover != "" {
		errs = append(errs, oneOf(spec.Failover, &out.Failover, at.Child("failover"), "fenced", "wait")...)
	}
	return errs
}

func oneOf(text string, to *string, at *field.Path, choices ...string) field.ErrorList {
	if !slices.Contains(choices, text) {
		return field.ErrorList{field.NotSupported(at, text, choices)}
	}
	*to = text
	return nil
}

func metrics(spec *desired.MetricsSpec, out *desired.Settings, at *field.Path) (errs field.ErrorList) {
	if u, err := url.Parse(spec.Prometheus); spec.Prometheus != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "") {
		errs = append(errs, field.Invalid(at.Child("prometheus"), spec.Prometheus, "must be an http or https URL"))
	}
	if spec.Prometheus == "" && len(spec.Queries) > 0 {
		errs = append(errs, field.Required(at.Child("prometheus"), "the queries need a Prometheus to ask"))
	}
	out.Prometheus, out.Queries = spec.Prometheus, spec.Queries
	return errs
}

func guard(spec *desired.GuardSpec, out *desired.Guard, at *field.Path) (errs field.ErrorList) {
	if n := spec.Objects; n != nil {
		if *n < 0 {
			errs = append(errs, field.Invalid(at.Child("objects"), *n, "must not be negative"))
		} else {
			out.Objects = *n
		}
	}
	if n := spec.Percent; n != nil {
		if *n < 0 || *n > 100 {
			errs = append(errs, field.Invalid(at.Child("percent"), *n, "must be from 0 to 100"))
		} else {
			out.Percent = *n
		}
	}
	return errs
}

func network(spec *desired.NetworkSpec, out *desired.Network, at *field.Path) (errs field.ErrorList) {
	if spec.ServiceCIDR != "" {
		errs = append(errs, prefix(spec.ServiceCIDR, &out.Services, 12, 28, at.Child("serviceCIDR"))...)
	}
	if spec.PodCIDR != "" {
		errs = append(errs, prefix(spec.PodCIDR, &out.Pods, 8, 24, at.Child("podCIDR"))...)
	}
	if len(errs) == 0 && out.Services.Overlaps(out.Pods) {
		errs = append(errs, field.Invalid(at, fmt.Sprintf("%s and %s", out.Services, out.Pods), "serviceCIDR and podCIDR must not overlap"))
	}
	if spec.Domain != "" {
		out.Domain = strings.TrimSuffix(spec.Domain, ".")
		for _, m := range validation.IsDNS1123Subdomain(out.Domain) {
			errs = append(errs, field.Invalid(at.Child("domain"), spec.Domain, m))
		}
	}
	if spec.Overlay != "" {
		errs = append(errs, oneOf(spec.Overlay, &out.Overlay, at.Child("overlay"), "vxlan", "routes", "wireguard")...)
	}
	if spec.NodePorts != "" {
		low, high, err := portRange(spec.NodePorts)
		if err != nil {
			errs = append(errs, field.Invalid(at.Child("nodePorts"), spec.NodePorts, err.Error()))
		} else {
			out.NodePortLow, out.NodePortHigh = low, high
		}
	}
	return errs
}

// prefix reads an IPv4 network that is neither larger than /low nor smaller than /high.
func prefix(text string, out *netip.Prefix, low, high int, at *field.Path) field.ErrorList {
	p, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		return field.ErrorList{field.Invalid(at, text, "must be a network such as "+out.String())}
	case !p.Addr().Is4():
		return field.ErrorList{field.Invalid(at, text, "must be an IPv4 network")}
	case p != p.Masked():
		return field.ErrorList{field.Invalid(at, text, "must not have host bits; write "+p.Masked().String())}
	case p.Bits() < low || p.Bits() > high:
		return field.ErrorList{field.Invalid(at, text, fmt.Sprintf("must be from /%d to /%d", low, high))}
	case p.Addr().IsLoopback() || p.Addr().IsMulticast() || p.Addr().IsLinkLocalUnicast() || p.Addr().IsUnspecified():
		return field.ErrorList{field.Invalid(at, text, "must be a unicast network, not loopback or link-local")}
	}
	*out = p
	return nil
}

func portRange(text string) (low, high uint16, err error) {
	first, last, found := strings.Cut(text, "-")
	a, errA := strconv.ParseUint(strings.TrimSpace(first), 10, 16)
	b, errB := strconv.ParseUint(strings.TrimSpace(last), 10, 16)
	if !found || errA != nil || errB != nil || a == 0 || a > b {
		return 0, 0, fmt.Errorf("must be two ports, the lower first, such as 30000-32767")
	}
	return uint16(a), uint16(b), nil
}

var _ metav1.Object = (*desired.Cluster)(nil)
