package storage

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"github.com/tallyman-dev/tallyman/nodes"
)

// noProvisioner is the provisioner of classes whose volumes people make.
const noProvisioner = "kubernetes.io/no-provisioner"

// Class is a StorageClass that exists: in Git, or built in. Immutable.
type Class struct {
	Name string
	// Written is the provisioner as the class names it.
	Written string
	// Provisioner that makes the volumes: nodes.LocalProvisioner or the name of a
	// CSI driver; empty when only volumes that exist are bound.
	Provisioner  string
	Parameters   map[string]string
	MountOptions []string
	Reclaim      corev1.PersistentVolumeReclaimPolicy
	// Delayed classes bind and provision when a pod is placed.
	Delayed bool
	// Expand lets claims grow.
	Expand     bool
	topologies []corev1.TopologySelectorTerm
}

func newClass(o *storagev1.StorageClass) *Class {
	c := &Class{
		Name: o.Name, Written: o.Provisioner, Provisioner: o.Provisioner, Parameters: o.Parameters, MountOptions: o.MountOptions,
		Reclaim: corev1.PersistentVolumeReclaimDelete, topologies: o.AllowedTopologies,
	}
	switch {
	case o.Provisioner == noProvisioner:
		c.Provisioner = ""
	case nodes.ServedLocally(o.Provisioner):
		c.Provisioner = nodes.LocalProvisioner
	}
	if o.ReclaimPolicy != nil {
		c.Reclaim = *o.ReclaimPolicy
	}
	c.Delayed = o.VolumeBindingMode != nil && *o.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer
	c.Expand = o.AllowVolumeExpansion != nil && *o.AllowVolumeExpansion
	return c
}

// refuses says why a node can't make a volume of this class; empty when it can.
func (c *Class) refuses(n Node) string {
	switch {
	case c.Provisioner != nodes.LocalProvisioner && !slices.Contains(n.Drivers, c.Provisioner):
		return "does not run the storage driver " + c.Provisioner + " of StorageClass " + c.Name
	case !c.allows(n):
		return "is outside of the topologies that StorageClass " + c.Name + " allows"
	}
	return ""
}

// allows evaluates allowedTopologies: terms are alternatives, the expressions
// of one must all hold.
func (c *Class) allows(n Node) bool {
	if len(c.topologies) == 0 {
		return true
	}
	return slices.ContainsFunc(c.topologies, func(t corev1.TopologySelectorTerm) bool {
		return !slices.ContainsFunc(t.MatchLabelExpressions, func(e corev1.TopologySelectorLabelRequirement) bool {
			value, ok := n.Labels[e.Key]
			return !ok || !slices.Contains(e.Values, value)
		})
	})
}

// Classes are all that exist.
type Classes struct {
	named map[string]*Class
	// standard is for claims that name no class; nil when there is none.
	standard *Class
	// marked tells that Git chose the standard.
	marked bool
}

// NewClasses reads the classes of a revision, in any order. Of several that are
// marked as default, the first by name is.
func NewClasses(objects []*storagev1.StorageClass) *Classes {
	out := &Classes{named: make(map[string]*Class, len(objects)+1)}
	for _, o := range objects {
		c := newClass(o)
		out.named[c.Name] = c
		if nodes.IsDefaultClass(o) && (out.standard == nil || c.Name < out.standard.Name) {
			out.standard, out.marked = c, true
		}
	}
	if _, ours := out.named[nodes.BuiltinClassName]; !ours {
		builtin := newClass(nodes.BuiltinClass())
		out.named[builtin.Name] = builtin
		if !out.marked {
			out.standard = builtin
		}
	}
	return out
}

// Named is the class of this name; nil when there is none.
func (cs *Classes) Named(name string) *Class {
	if c, ok := cs.named[name]; ok {
		return c
	}
	if name != "" && nodes.StandsForBuiltin(name) {
		c := *newClass(nodes.BuiltinClass())
		c.Name = name
		return &c
	}
	return nil
}

// of is the class of a claim, nil for none, and the class name that volumes
// must have to be bound to it. Where Git marks no default, a claim that names
// no class takes a volume without one if there is one that fits, as in a
// cluster without default, and is provisioned otherwise.
func (cs *Classes) of(c *Claim) (class *Class, bound string) {
	switch {
	case c.Class != nil:
		return cs.Named(*c.Class), *c.Class
	case cs.marked:
		return cs.standard, cs.standard.Name
	default:
		return cs.standard, ""
	}
}

// lacking says what is missing where a claim has no class that could help.
func (cs *Classes) lacking(c *Claim) string {
	switch {
	case c.Class == nil:
		return "no PersistentVolume without a class fits, and no StorageClass is marked as default: mark one, or name one in the claim"
	case *c.Class == "":
		return `no PersistentVolume without a class fits, and storageClassName "" asks for no other: add one, or leave storageClassName out`
	default:
		return "no PersistentVolume of class " + *c.Class + " fits, and there is no StorageClass " + *c.Class +
			": add one (provisioner " + nodes.LocalProvisioner + " keeps data on the node), or leave storageClassName out"
	}
}

// unserved says that nothing here makes volumes for a class.
func (c *Class) unserved() string {
	advice := "use the provisioner " + nodes.LocalProvisioner + ", or add a PersistentVolume of this class"
	if strings.HasPrefix(c.Written, "kubernetes.io/") {
		return "StorageClass " + c.Name + " has the provisioner " + c.Written + ", which does not run here: " + advice
	}
	return "StorageClass " + c.Name + " has the provisioner " + c.Written + ", and no node runs this driver: install it, " + advice
}
