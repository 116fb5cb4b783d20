// Package spec turns what a manifest says about a pod into what the container
// runtime needs: environment, command line, resources, security, host files.
//
// Everything here is a function of values, with Kubernetes' arithmetic and
// wording. It reads no clock and no file and talks to nobody; package agent
// carries the results out.
package spec

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/proxy"
)

// Context is what a pod's containers are told about the world.
type Context struct {
	Pod *nodes.Pod
	// IP of the pod; invalid before it has one.
	IP netip.Addr
	// HostIPs are the node's addresses, the preferred one first.
	HostIPs []netip.Addr
	Node    string
	// Allocatable stands in for a limit that a container does not set.
	Allocatable corev1.ResourceList
	// Config returns a ConfigMap or Secret, nil when it is not there.
	Config func(desired.Key) *nodes.Config
	// File reads a file of one of the pod's volumes; nil where there are none yet.
	File func(volume, path string) ([]byte, error)
	// Services of the cluster, for service links; may be nil.
	Services *proxy.Table
}

// Field resolves a fieldRef.
func (c *Context) Field(ref *corev1.ObjectFieldSelector) (string, error) {
	t := c.Pod.Template
	if key, found := subscript(ref.FieldPath, "metadata.labels"); found {
		return c.Pod.AllLabels()[key], nil
	}
	if key, found := subscript(ref.FieldPath, "metadata.annotations"); found {
		return c.Pod.AllAnnotations()[key], nil
	}
	switch ref.FieldPath {
	case "metadata.name":
		return c.Pod.Name, nil
	case "metadata.namespace":
		return c.Pod.Namespace, nil
	case "metadata.uid":
		return string(c.Pod.UID), nil
	case "metadata.labels":
		return quoted(c.Pod.AllLabels()), nil
	case "metadata.annotations":
		return quoted(c.Pod.AllAnnotations()), nil
	case "spec.nodeName":
		return c.Node, nil
	case "spec.serviceAccountName":
		return t.Spec.ServiceAccountName, nil
	case "status.hostIP":
		return firstAddr(c.HostIPs), nil
	case "status.hostIPs":
		return joinAddrs(c.HostIPs), nil
	case "status.podIP", "status.podIPs":
		if !c.IP.IsValid() {
			return "", fmt.Errorf("fieldRef %s: the pod has no address yet", ref.FieldPath)
		}
		return c.IP.String(), nil
	}
	return "", fmt.Errorf("fieldRef %q: no such field is offered", ref.FieldPath)
}

// subscript takes key out of "field['key']".
func subscript(path, field string) (string, bool) {
	rest, found := strings.CutPrefix(path, field+"['")
	if !found {
		return "", false
	}
	return strings.CutSuffix(rest, "']")
}

// quoted is a map as the downward API writes it: sorted, one key="value" a line.
func quoted(m map[string]string) string {
	lines := make([]string, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		lines = append(lines, k+"="+strconv.Quote(m[k]))
	}
	return strings.Join(lines, "\n")
}

func firstAddr(addrs []netip.Addr) string {
	if len(addrs) == 0 {
		return ""
	}
	return addrs[0].String()
}

func joinAddrs(addrs []netip.Addr) string {
	words := make([]string, len(addrs))
	for i, a := range addrs {
		words[i] = a.String()
	}
	return strings.Join(words, ",")
}

// Resource resolves a resourceFieldRef. own is the container that asks; a ref
// that names another container of the pod wins.
func (c *Context) Resource(ref *corev1.ResourceFieldSelector, own *corev1.Container) (string, error) {
	container := own
	if ref.ContainerName != "" {
		container = Find(&c.Pod.Template.Spec, ref.ContainerName)
	}
	if container == nil {
		return "", fmt.Errorf("resourceFieldRef %s: no container %q in the pod", ref.Resource, ref.ContainerName)
	}
	kind, name, found := strings.Cut(ref.Resource, ".")
	if !found {
		return "", fmt.Errorf("resourceFieldRef %q: want limits.… or requests.…", ref.Resource)
	}
	list := container.Resources.Requests
	if kind == "limits" {
		list = container.Resources.Limits
	}
	quantity := list[corev1.ResourceName(name)]
	if quantity.IsZero() && kind == "limits" {
		quantity = c.bound(corev1.ResourceName(name))
	}
	return divide(quantity, ref.Divisor, name == string(corev1.ResourceCPU)), nil
}

// bound stands in for a limit that a container does not set: that of its pod, or
// what the node has.
func (c *Context) bound(name corev1.ResourceName) resource.Quantity {
	switch name {
	case corev1.ResourceCPU, corev1.ResourceMemory:
		if whole := c.Pod.Template.Spec.Resources; whole != nil && positive(whole.Limits, name) {
			return whole.Limits[name]
		}
	case corev1.ResourceEphemeralStorage:
	default:
		return resource.Quantity{} // pages of memory are never more than what is asked for
	}
	return c.Allocatable[name]
}

// divide rounds up, as the downward API does.
func divide(q, divisor resource.Quantity, milli bool) string {
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	if milli {
		return strconv.FormatInt(ceil(q.MilliValue(), divisor.MilliValue()), 10)
	}
	return strconv.FormatInt(ceil(q.Value(), divisor.Value()), 10)
}

func ceil(a, b int64) int64 {
	if b <= 0 {
		return a
	}
	return (a + b - 1) / b
}

// Find returns the container with this name, init containers included, or nil.
func Find(s *corev1.PodSpec, name string) *corev1.Container {
	for i := range s.Containers {
		if s.Containers[i].Name == name {
			return &s.Containers[i]
		}
	}
	for i := range s.InitContainers {
		if s.InitContainers[i].Name == name {
			return &s.InitContainers[i]
		}
	}
	return nil
}

// Restarts reports whether a container that ended with an exit code is to run
// once more: by its first rule that fits, else by its own policy, else by the
// pod's.
func Restarts(s *corev1.PodSpec, c *corev1.Container, code int32) bool {
	policy := corev1.ContainerRestartPolicy(s.RestartPolicy)
	if c.RestartPolicy != nil {
		policy = *c.RestartPolicy
		if slices.ContainsFunc(c.RestartPolicyRules, func(r corev1.ContainerRestartRule) bool { return fits(r, code) }) {
			return true
		}
	}
	switch policy {
	case corev1.ContainerRestartPolicyNever:
		return false
	case corev1.ContainerRestartPolicyOnFailure:
		return code != 0
	}
	return true
}

// RestartsAll reports whether a container that ended with an exit code takes all
// others of its pod with it, by its first rule that fits.
func RestartsAll(c *corev1.Container, code int32) bool {
	i := slices.IndexFunc(c.RestartPolicyRules, func(r corev1.ContainerRestartRule) bool { return fits(r, code) })
	return i >= 0 && c.RestartPolicyRules[i].Action == corev1.ContainerRestartRuleActionRestartAllContainers
}

// fits reports whether a rule is about an exit code. Both actions that
// Kubernetes knows restart the container.
func fits(r corev1.ContainerRestartRule, code int32) bool {
	if r.ExitCodes == nil {
		return false
	}
	listed := slices.Contains(r.ExitCodes.Values, code)
	switch r.ExitCodes.Operator {
	case corev1.ContainerRestartRuleOnExitCodesOpIn:
		return listed
	case corev1.ContainerRestartRuleOnExitCodesOpNotIn:
		return !listed
	}
	return false
}

// Sidecar reports whether an init container goes on beside the others. It is to
// be asked about init containers only.
func Sidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}
