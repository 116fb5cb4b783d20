package stacks

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/tallyman-dev/tallyman/desired"
)

// Profiles are those that the machine has and manifests cannot bring: of
// AppArmor, nil where the machine has none of it, and the files of seccomp.
type Profiles struct {
	AppArmor, Seccomp []string
}

// Lacks tells, by object, what a revision of a stack demands that one node with these
// profiles does not have, in the words of Kubernetes' rules. It looks at the
// manifests alone: an object that is not in it has no excuse.
func (s *Stack) Lacks(revision int, p Profiles) map[desired.Key]string {
	l := lacks{found: map[desired.Key]string{}}
	if revision >= len(s.Snapshots) {
		return l.found
	}
	l.snapshot = s.Snapshots[revision]
	all := templates(l.snapshot)
	l.hostPorts(all)
	for _, t := range all {
		l.apart(t, all)
		l.profiles(t, p)
		l.claims(t)
		l.drivers(t)
		l.probes(t)
	}
	return l.found
}

type lacks struct {
	snapshot *desired.Snapshot
	found    map[desired.Key]string
}

// hostPorts of a node each belong to one pod at a time.
func (l *lacks) hostPorts(all []template) {
	pods, users := map[string]int32{}, map[string][]desired.Key{}
	for _, t := range all {
		for i := range t.spec.Containers {
			for _, p := range t.spec.Containers[i].Ports {
				if p.HostPort > 0 {
					port := fmt.Sprintf("%s %s %d", p.HostIP, p.Protocol, p.HostPort)
					pods[port] += t.replicas
					users[port] = append(users[port], t.owner)
				}
			}
		}
	}
	for _, port := range slices.Sorted(maps.Keys(pods)) {
		for _, k := range users[port] {
			if n := pods[port]; n > 1 && l.found[k] == "" {
				l.found[k] = fmt.Sprintf("%d pods want host port %s, which a node has once: %d nodes are needed", n, port[strings.LastIndex(port, " ")+1:], n)
			}
		}
	}
}

// apart are pods whose required anti-affinity keeps them off each other's node:
// of one node, every topology has but one domain.
func (l *lacks) apart(t template, all []template) {
	a := t.spec.Affinity
	if a == nil || a.PodAntiAffinity == nil {
		return
	}
	for _, term := range a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution {
		selector, err := metav1.LabelSelectorAsSelector(term.LabelSelector)
		if err != nil {
			continue
		}
		for _, o := range all {
			if o.namespace != t.namespace && !slices.Contains(term.Namespaces, o.namespace) || !selector.Matches(labels.Set(o.labels)) {
				continue
			}
			if o.owner != t.owner || t.replicas > 1 {
				why := fmt.Sprintf("a required pod anti-affinity over %s forbids its pods to share a node with those of %s: several nodes are needed", term.TopologyKey, o.owner)
				l.found[t.owner], l.found[o.owner] = why, why
			}
		}
	}
}

// profiles must be loaded, or lie on the node, before a pod with them starts.
func (l *lacks) profiles(t template, p Profiles) {
	for _, c := range contexts(t.spec) {
		if a := c.armor; a != nil && a.Type == corev1.AppArmorProfileTypeLocalhost && a.LocalhostProfile != nil {
			switch {
			case p.AppArmor == nil:
				l.found[t.owner] = "an AppArmor profile is demanded, and the machine has no AppArmor"
			case !slices.Contains(p.AppArmor, *a.LocalhostProfile):
				l.found[t.owner] = fmt.Sprintf("the AppArmor profile %s must be loaded on the node beforehand", *a.LocalhostProfile)
			}
		}
		if x := c.seccomp; x != nil && x.Type == corev1.SeccompProfileTypeLocalhost && x.LocalhostProfile != nil && !slices.Contains(p.Seccomp, *x.LocalhostProfile) {
			l.found[t.owner] = fmt.Sprintf("the seccomp profile %s must lie on the node beforehand", *x.LocalhostProfile)
		}
	}
}

type confinement struct {
	armor   *corev1.AppArmorProfile
	seccomp *corev1.SeccompProfile
}

// contexts are the security contexts of a pod and its containers.
func contexts(spec *corev1.PodSpec) []confinement {
	var all []confinement
	if v := spec.SecurityContext; v != nil {
		all = append(all, confinement{v.AppArmorProfile, v.SeccompProfile})
	}
	for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
		if v := c.SecurityContext; v != nil {
			all = append(all, confinement{v.AppArmorProfile, v.SeccompProfile})
		}
	}
	return all
}

// claims that select their volume get none but by a label: provisioners refuse
// them.
func (l *lacks) claims(t template) {
	for _, v := range t.spec.Volumes {
		if v.PersistentVolumeClaim == nil {
			continue
		}
		k := desired.Key{Kind: "PersistentVolumeClaim", Namespace: t.namespace, Name: v.PersistentVolumeClaim.ClaimName}
		o := l.snapshot.Get(k)
		if o == nil {
			continue
		}
		claim, ok := o.Value.(*corev1.PersistentVolumeClaim)
		if !ok || claim.Spec.Selector == nil || l.selected(claim.Spec.Selector) {
			continue
		}
		why := fmt.Sprintf("claim %s selects its volume by labels that no PersistentVolume has, and volumes for a selector are not provisioned", k.Name)
		l.found[t.owner], l.found[k] = why, why
	}
}

// entering is the processor time that runc takes to enter a container, measured
// with runc 1.1 and a command that does nothing: it counts for the container.
const entering = 11 * time.Millisecond

// period is that of the kernel's quota, and least what kubelet and Tallyman give
// of it at least.
const (
	period = 100 * time.Millisecond
	least  = time.Millisecond
)

// probes that run a command need more than to enter the container in time.
func (l *lacks) probes(t template) {
	for i := range t.spec.Containers {
		c := &t.spec.Containers[i]
		limit, limited := c.Resources.Limits[corev1.ResourceCPU]
		if !limited {
			continue
		}
		quota := max(period*time.Duration(limit.MilliValue())/1000, least)
		for _, p := range []*corev1.Probe{c.StartupProbe, c.ReadinessProbe, c.LivenessProbe} {
			if p == nil || p.Exec == nil {
				continue
			}
			timeout := time.Duration(max(p.TimeoutSeconds, 1)) * time.Second
			if has := quota * (timeout / period); has <= entering {
				l.found[t.owner] = fmt.Sprintf("within the %s that its probe may take, container %s may use %s of cpu, and for runc to enter it takes %s", timeout, c.Name, has, entering)
			}
		}
	}
}

// noDriver is why a volume is never there.
const noDriver = "nothing in the directory brings the CSI driver of its volume"

// drivers of CSI come with the machine or with a manifest, which has an object
// for each.
func (l *lacks) drivers(t template) {
	for _, v := range t.spec.Volumes {
		switch {
		case v.CSI != nil && !l.driver(v.CSI.Driver):
			l.found[t.owner] = noDriver
		case v.PersistentVolumeClaim != nil:
			k := desired.Key{Kind: "PersistentVolumeClaim", Namespace: t.namespace, Name: v.PersistentVolumeClaim.ClaimName}
			if volume := l.volume(k); volume != nil && volume.Spec.CSI != nil && !l.driver(volume.Spec.CSI.Driver) {
				l.found[t.owner], l.found[k] = noDriver, noDriver
			}
		}
	}
}

func (l *lacks) driver(name string) bool {
	return l.snapshot.Get(desired.Key{Group: "storage.k8s.io", Kind: "CSIDriver", Name: name}) != nil
}

// volume is the one that a claim names; nil if it names none.
func (l *lacks) volume(claim desired.Key) *corev1.PersistentVolume {
	o := l.snapshot.Get(claim)
	if o == nil {
		return nil
	}
	c, ok := o.Value.(*corev1.PersistentVolumeClaim)
	if !ok || c.Spec.VolumeName == "" {
		return nil
	}
	o = l.snapshot.Get(desired.Key{Kind: "PersistentVolume", Name: c.Spec.VolumeName})
	if o == nil {
		return nil
	}
	v, _ := o.Value.(*corev1.PersistentVolume)
	return v
}

func (l *lacks) selected(by *metav1.LabelSelector) bool {
	selector, err := metav1.LabelSelectorAsSelector(by)
	return err != nil || slices.ContainsFunc(l.snapshot.Kind("PersistentVolume"), func(o *desired.Object) bool {
		v, ok := o.Value.(*corev1.PersistentVolume)
		return ok && selector.Matches(labels.Set(v.Labels))
	})
}

// refusals are what stands behind a refusal here, by its code, where Kubernetes
// would bring up no pod either.
var refusals = map[string]string{
	"invalid":           "its own validation refuses the same field",
	"immutable":         "it lets nobody change the same field either, and the directory writes the object twice",
	"missing-secret":    "the container is not made before the Secret is there, and nothing in the directory brings it",
	"missing-configmap": "the container is not made before the ConfigMap is there, and nothing in the directory brings it",
}

// Excuse tells why a stack that failed at a revision would fail in Kubernetes too: each of the
// objects that did not become ready lacks something, or what refuses the manifests
// holds there too. It is empty when it would not.
func (s *Stack) Excuse(revision int, stuck []desired.Key, p Profiles) string {
	if s.Refused != nil {
		return refusals[s.Refused.Code]
	}
	found := s.Lacks(revision, p)
	var reasons []string
	for _, k := range stuck {
		if found[k] == "" {
			return ""
		}
		reasons = append(reasons, found[k])
	}
	slices.Sort(reasons)
	return strings.Join(slices.Compact(reasons), "; ")
}
