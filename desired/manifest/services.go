package manifest

import (
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/tallyman-dev/tallyman/desired"
)

// nodePort is a claim on every node.
type nodePort struct {
	port     int32
	protocol corev1.Protocol
}

// checkServices applies the rules between services, and between services and pods.
func (w *world) checkServices(config desired.Settings) {
	ports := map[nodePort]*entry{}
	addresses := map[netip.Addr]*entry{}
	for _, e := range w.objects {
		s, ok := e.object.Value.(*corev1.Service)
		if !ok {
			continue
		}
		w.checkTargets(e, s)
		if s.Spec.Type == corev1.ServiceTypeExternalName {
			continue
		}
		w.claimAddress(e, s, config, addresses)
		w.claimPorts(e, s, config, ports)
	}
}

// checkTargets looks for the ports that a service names in the pods it selects.
func (w *world) checkTargets(e *entry, s *corev1.Service) {
	if len(s.Spec.Selector) == 0 {
		return
	}
	selected := w.pods.selected(e.key.Namespace, s.Spec.Selector)
	if len(selected) == 0 {
		w.found.report(e, desired.Note, "no-pods", "spec.selector", "the selector matches no pod of this revision", "")
		return
	}
	names := map[string]bool{}
	for _, t := range selected {
		t.portNames(names)
	}
	delete(names, "")
	for i := range s.Spec.Ports {
		target := s.Spec.Ports[i].TargetPort
		if target.Type == intstr.String && !names[target.StrVal] {
			w.found.report(e, desired.Warning, "missing-port", fmt.Sprintf("spec.ports[%d].targetPort", i),
				fmt.Sprintf("no pod that the service selects has a port named %q", target.StrVal), suggest(target.StrVal, names))
		}
	}
}

// claimAddress checks an address that a service fixes.
func (w *world) claimAddress(e *entry, s *corev1.Service, config desired.Settings, taken map[netip.Addr]*entry) {
	addr, err := netip.ParseAddr(s.Spec.ClusterIP)
	if err != nil {
		return // none, headless, or reported by Kubernetes' validation
	}
	const field = "spec.clusterIP"
	services := config.Network.Services
	if !services.Contains(addr) || addr == services.Addr() {
		w.found.report(e, desired.Error, "invalid", field, fmt.Sprintf("%s is not an address of the service network %s", addr, services), "leave clusterIP out to be given one")
		return
	}
	if first, ok := taken[addr]; ok {
		w.found.report(e, desired.Error, "conflict", field, fmt.Sprintf("%s is the address of %s in %s", addr, first.key, where(first)), "leave clusterIP out to be given another")
		return
	}
	taken[addr] = e
}

// claimPorts checks the node ports that a service fixes.
func (w *world) claimPorts(e *entry, s *corev1.Service, config desired.Settings, taken map[nodePort]*entry) {
	for i := range s.Spec.Ports {
		p := &s.Spec.Ports[i]
		w.claimPort(e, fmt.Sprintf("spec.ports[%d].nodePort", i), nodePort{p.NodePort, p.Protocol}, config, taken)
	}
	w.claimPort(e, "spec.healthCheckNodePort", nodePort{s.Spec.HealthCheckNodePort, corev1.ProtocolTCP}, config, taken)
}

// claimPort checks one of them; port 0 claims nothing.
func (w *world) claimPort(e *entry, field string, claim nodePort, config desired.Settings, taken map[nodePort]*entry) {
	low, high := int32(config.Network.NodePortLow), int32(config.Network.NodePortHigh)
	if claim.port == 0 {
		return
	}
	leaveOut := "leave " + field[strings.LastIndexByte(field, '.')+1:] + " out to be given "
	if claim.port < low || claim.port > high {
		w.found.report(e, desired.Error, "invalid", field, fmt.Sprintf("%d is not a node port: they are %d-%d", claim.port, low, high), leaveOut+"one")
		return
	}
	if first, ok := taken[claim]; ok && first != e {
		w.found.report(e, desired.Error, "conflict", field, fmt.Sprintf("node port %d (%s) is that of %s in %s", claim.port, claim.protocol, first.key, where(first)), leaveOut+"another")
		return
	}
	taken[claim] = e
}

// checkImmutable compares with the revision in force what cannot change. All
// other fields that Kubernetes calls immutable are rolled or replaced.
func (w *world) checkImmutable(config desired.Settings, previous *desired.Snapshot) {
	before := previous.Settings().Network
	before.Overlay = config.Network.Overlay // no address depends on it
	if before != config.Network {
		w.reportNetwork(before)
	}
	storage := w.storageUse()
	for _, e := range w.objects {
		old := previous.Get(e.key)
		if old == nil || old.Fingerprint == e.object.Fingerprint {
			continue
		}
		storage.immutableStorage(e, old)
		s, ok := e.object.Value.(*corev1.Service)
		if !ok {
			continue
		}
		before, ok := old.Value.(*corev1.Service)
		if !ok || before.Spec.Type == corev1.ServiceTypeExternalName || s.Spec.Type == corev1.ServiceTypeExternalName {
			continue
		}
		if from, to := before.Spec.ClusterIP, s.Spec.ClusterIP; from != to && from != "" && to != "" {
			w.found.report(e, desired.Error, "immutable", "spec.clusterIP", fmt.Sprintf("a service keeps its address: it is %s, not %s", from, to),
				"delete the service in one revision and add it in the next, or give it another name")
		}
	}
}

// reportNetwork places the change of a setting that is fixed after first use.
func (w *world) reportNetwork(before desired.Network) {
	const hint = "put the former value back; other addresses need a new cluster"
	message := fmt.Sprintf("the cluster's network is fixed: services %s, pods %s, domain %s, node ports %d-%d",
		before.Services, before.Pods, before.Domain, before.NodePortLow, before.NodePortHigh)
	if e := w.known[desired.ClusterKey]; e != nil {
		w.found.report(e, desired.Error, "immutable", "spec.network", message, hint)
		return
	}
	w.found.problems = append(w.found.problems, desired.Problem{Severity: desired.Error, Code: "immutable", Field: "spec.network", Message: message, Hint: hint})
}
