// Package storage decides which volume a claim has: the rules of Kubernetes'
// volume controller and of the volume part of its scheduler, as functions of
// values.
//
// Guarantees: no two claims get one volume; the smallest volume that fits is
// taken, ties going to the name that sorts first; every claim that gets none,
// and every node that can't serve a pod's claims, has one sentence that says
// why. It binds nothing and keeps nothing.
package storage

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// Claim is what a PersistentVolumeClaim asks for. Immutable.
type Claim struct {
	Key desired.Key
	// Class as it is written: nil leaves it to the default, "" wants a volume
	// without one.
	Class *string
	Spec  *corev1.PersistentVolumeClaimSpec
	// Origin is set for a claim with a data source.
	Origin *Origin
}

// Origin is what the content of a claim's volume begins with.
type Origin struct {
	// Name is what people call it: "PersistentVolumeClaim data".
	Name string
	// Waits says in one sentence why it cannot be had yet, empty when it can;
	// Stuck that nothing changes by itself.
	Waits string
	Stuck bool
	// Provisioner that has it, on Node; empty for any node.
	Provisioner, Node string
}

// With is the claim with an origin; itself for nil.
func (c *Claim) With(o *Origin) *Claim {
	if o == nil {
		return c
	}
	with := *c
	with.Origin = o
	return &with
}

// NewClaim reads a claim. The old annotation for the class wins, as in
// Kubernetes.
func NewClaim(k desired.Key, annotations map[string]string, spec *corev1.PersistentVolumeClaimSpec) *Claim {
	c := &Claim{Key: k, Class: spec.StorageClassName, Spec: spec}
	if name, ok := annotations[corev1.BetaStorageClassAnnotation]; ok {
		c.Class = &name
	}
	return c
}

// Size that is requested.
func (c *Claim) Size() resource.Quantity { return c.Spec.Resources.Requests[corev1.ResourceStorage] }

// Volume is a PersistentVolume, from Git or provisioned. Immutable.
type Volume struct {
	Name   string
	Labels map[string]string
	Spec   *corev1.PersistentVolumeSpec
	Class  string
	// Claim that has it; also the last one that had it, which alone may have it
	// again. Zero for a volume that nobody had.
	Claim desired.Key
	// Node that holds its data; empty where any node that its affinity allows can
	// reach it.
	Node string
	// Ending is set when it is given to nobody any more.
	Ending bool
	// Driver must run on its node, and have told what it calls the node if Attached
	// is set; empty for a volume that needs none, or whose node may wait for it.
	Driver   string
	Attached bool
	// CSI is the driver that serves the volume; empty for one without.
	CSI string
}

// ClassOf is the class of a PersistentVolume. The old annotation wins, as in
// Kubernetes.
func ClassOf(pv *corev1.PersistentVolume) string {
	if name, ok := pv.Annotations[corev1.BetaStorageClassAnnotation]; ok {
		return name
	}
	return pv.Spec.StorageClassName
}

// Capacity that the volume is to have.
func (v *Volume) Capacity() resource.Quantity { return v.Spec.Capacity[corev1.ResourceStorage] }

// reservedFor is the claim that spec.claimRef names; zero for none.
func (v *Volume) reservedFor() desired.Key {
	if r := v.Spec.ClaimRef; r != nil {
		return ClaimKey(r.Namespace, r.Name)
	}
	return desired.Key{}
}

// taken says who else has the volume; empty when the claim may have it.
func (v *Volume) taken(c *Claim) string {
	switch {
	case !v.Claim.IsZero() && v.Claim != c.Key:
		return "is bound to " + v.Claim.String()
	case v.Claim.IsZero() && v.Spec.ClaimRef != nil && v.Spec.ClaimRef.UID != "":
		return "is released: its spec.claimRef.uid names a claim of another cluster; remove the uid from its manifest"
	case v.Claim.IsZero() && v.Spec.ClaimRef != nil && v.reservedFor() != c.Key:
		return "is reserved for " + v.reservedFor().String()
	case v.Ending:
		return "is going"
	}
	return ""
}

// unfit says why a volume can't serve a claim that asks for it by name; class
// is the one that the claim has. Empty when it can.
func (v *Volume) unfit(c *Claim, class string) string {
	size, capacity := c.Size(), v.Capacity()
	switch {
	case capacity.Cmp(size) < 0:
		return fmt.Sprintf("has %s, less than the %s of the claim", capacity.String(), size.String())
	case v.Class != class:
		return fmt.Sprintf("has storageClassName %q, the claim %q", v.Class, class)
	case mode(v.Spec.VolumeMode) != mode(c.Spec.VolumeMode):
		return fmt.Sprintf("has volumeMode %s, the claim %s", mode(v.Spec.VolumeMode), mode(c.Spec.VolumeMode))
	case !grants(v.Spec.AccessModes, c.Spec.AccessModes):
		return fmt.Sprintf("has not all access modes of the claim (%v, wanted %v)", v.Spec.AccessModes, c.Spec.AccessModes)
	}
	return ""
}

// MayReturn reports whether a claim that comes back can have the volume that
// the claim of its name had: what it asks for has not become something else. A
// larger size is no obstacle: the volume grows.
func (v *Volume) MayReturn(c *Claim) bool {
	return !v.Ending && v.Claim == c.Key &&
		(c.Spec.VolumeName == "" || c.Spec.VolumeName == v.Name) &&
		(c.Class == nil || *c.Class == v.Class) &&
		mode(v.Spec.VolumeMode) == mode(c.Spec.VolumeMode) &&
		grants(v.Spec.AccessModes, c.Spec.AccessModes)
}

// Shared reports whether pods on several nodes may use the volume at once.
func (v *Volume) Shared() bool {
	for _, m := range v.Spec.AccessModes {
		if m == corev1.ReadWriteMany || m == corev1.ReadOnlyMany {
			return true
		}
	}
	return len(v.Spec.AccessModes) == 0
}

// reachable says why a node can't use the volume; empty when it can.
func (v *Volume) reachable(n Node) string {
	switch {
	case v.Node != "" && v.Node != n.Name:
		return fmt.Sprintf("does not hold volume %s of claim %s, which is on node %s", v.Name, v.Claim.Name, v.Node)
	case v.Node == "" && !v.Admits(n):
		return "does not match the node affinity of volume " + v.Name
	case v.Driver != "" && !slices.Contains(n.Drivers, v.Driver):
		return "does not run the storage driver " + v.Driver + " of volume " + v.Name
	case v.Driver != "" && v.Attached && !n.tells(v.Driver):
		return "has an agent that does not say what the storage driver " + v.Driver + " of volume " + v.Name + " calls it: upgrade the agent"
	}
	return ""
}

func (n *Node) tells(driver string) bool {
	return slices.ContainsFunc(n.DriverNodes, func(d nodes.DriverNode) bool { return d.Name == driver })
}

// Admits evaluates spec.nodeAffinity.
func (v *Volume) Admits(n Node) bool {
	if v.Spec.NodeAffinity == nil || v.Spec.NodeAffinity.Required == nil {
		return true
	}
	selector, err := nodeaffinity.NewNodeSelector(v.Spec.NodeAffinity.Required)
	if err != nil {
		return false
	}
	kube := &corev1.Node{}
	kube.Name, kube.Labels = n.Name, n.Labels
	return selector.Match(kube)
}

// Node is a machine as volumes see it.
type Node struct {
	Name   string
	Labels map[string]string
	// Drivers are the CSI drivers that run on it, DriverNodes what they say of it.
	Drivers     []string
	DriverNodes []nodes.DriverNode
	// Having lists the volumes of a driver that pods on the node use. It is asked of
	// drivers with a bound alone.
	Having func(driver string) map[string]bool
	// Cordoned nodes take no new pods, Tainted ones only some: data that is made
	// before its pod is known is better elsewhere.
	Cordoned, Tainted bool
}

// ClaimKey names a claim.
func ClaimKey(namespace, name string) desired.Key {
	return desired.Key{Kind: "PersistentVolumeClaim", Namespace: namespace, Name: name}
}

// OncePod reports whether only one pod at a time may use the claim.
func (c *Claim) OncePod() bool {
	for _, m := range c.Spec.AccessModes {
		if m == corev1.ReadWriteOncePod {
			return true
		}
	}
	return false
}

func mode(m *corev1.PersistentVolumeMode) corev1.PersistentVolumeMode {
	if m == nil {
		return corev1.PersistentVolumeFilesystem
	}
	return *m
}

// grants reports whether have holds every mode of want.
func grants(have, want []corev1.PersistentVolumeAccessMode) bool {
	for _, w := range want {
		found := false
		for _, h := range have {
			found = found || h == w
		}
		if !found {
			return false
		}
	}
	return true
}

// selects evaluates the claim's selector; one that can't be read selects nothing.
func (c *Claim) selects(v *Volume) bool {
	if c.Spec.Selector == nil {
		return true
	}
	selector, err := metav1.LabelSelectorAsSelector(c.Spec.Selector)
	return err == nil && selector.Matches(labels.Set(v.Labels))
}
