package storage

import (
	"fmt"
	"slices"
)

// Verdict is what becomes of an unbound claim that no pod decides about: one of
// Volume and Class is set, or Waits says why neither is.
type Verdict struct {
	// Volume that it gets.
	Volume *Volume
	// Class that is to make one, on one of Nodes.
	Class *Class
	Nodes []Node
	// Waits is one sentence. Consumer tells that only a pod is missing, Stuck that
	// nothing changes by itself.
	Waits    string
	Consumer bool
	Stuck    bool
}

const waitsForConsumer = "waiting for first consumer to be created before binding"

// Decide applies the rules of Kubernetes' volume controller to an unbound
// claim. Volumes are in the order of their names; nodes are those that live.
func Decide(c *Claim, cs *Classes, volumes []*Volume, on []Node) Verdict {
	class, bound := cs.of(c)
	if c.Spec.VolumeName != "" {
		return byName(c, bound, volumes)
	}
	if v := preBound(c, volumes); v != nil {
		return Verdict{Volume: v}
	}
	if c.Origin != nil && c.Origin.Waits != "" {
		return Verdict{Waits: c.Origin.Waits, Stuck: c.Origin.Stuck}
	}
	if why := c.foreign(class); why != "" {
		return Verdict{Waits: why, Stuck: true}
	}
	if class != nil && class.Delayed {
		if class.Provisioner != "" && !class.served(on) && !slices.ContainsFunc(volumes, func(v *Volume) bool { return v.Class == bound }) {
			return Verdict{Waits: class.unserved(), Stuck: true}
		}
		return Verdict{Waits: waitsForConsumer, Consumer: true}
	}
	if v := smallest(c, bound, volumes, nil, nil); v != nil {
		return Verdict{Volume: v}
	}
	return provision(c, class, cs, on)
}

// byName binds a claim to the volume that it names.
func byName(c *Claim, class string, volumes []*Volume) Verdict {
	i, found := slices.BinarySearchFunc(volumes, c.Spec.VolumeName, func(v *Volume, name string) int {
		switch {
		case v.Name < name:
			return -1
		case v.Name > name:
			return 1
		}
		return 0
	})
	if !found {
		return Verdict{Waits: fmt.Sprintf("there is no PersistentVolume %s: add it, or leave volumeName out", c.Spec.VolumeName), Stuck: true}
	}
	v := volumes[i]
	why := v.taken(c)
	if why == "" {
		why = v.unfit(c, class)
	}
	if why != "" {
		return Verdict{Waits: "PersistentVolume " + v.Name + " " + why, Stuck: true}
	}
	return Verdict{Volume: v}
}

// preBound finds the volume whose spec.claimRef names the claim.
func preBound(c *Claim, volumes []*Volume) *Volume {
	for _, v := range volumes {
		size, capacity := c.Size(), v.Capacity()
		if v.Spec.ClaimRef != nil && v.reservedFor() == c.Key && v.taken(c) == "" && capacity.Cmp(size) >= 0 &&
			mode(v.Spec.VolumeMode) == mode(c.Spec.VolumeMode) && grants(v.Spec.AccessModes, c.Spec.AccessModes) {
			return v
		}
	}
	return nil
}

// smallest finds the free volume of a class that fits best: of the volumes with
// the fewest access modes the smallest. With a node, only volumes that it can
// reach count, and access modes have no order, as in Kubernetes' scheduler.
func smallest(c *Claim, class string, volumes []*Volume, n *Node, except map[string]bool) *Volume {
	if c.Origin != nil {
		return nil // a volume that is there has other content
	}
	var best *Volume
	for _, v := range volumes {
		if v.Spec.ClaimRef != nil || !v.Claim.IsZero() || v.Ending || except[v.Name] || v.unfit(c, class) != "" || !c.selects(v) {
			continue
		}
		if n != nil && v.reachable(*n) != "" {
			continue
		}
		if best == nil || v.better(best, n == nil) {
			best = v
		}
	}
	return best
}

func (v *Volume) better(than *Volume, byModes bool) bool {
	if a, b := len(v.Spec.AccessModes), len(than.Spec.AccessModes); byModes && a != b {
		return a < b
	}
	mine, other := v.Capacity(), than.Capacity()
	return mine.Cmp(other) < 0
}

func (c *Class) served(on []Node) bool {
	return slices.ContainsFunc(on, func(n Node) bool { return c.refuses(n) == "" })
}

// provision makes a volume for a claim that waits for no pod.
func provision(c *Claim, class *Class, cs *Classes, on []Node) Verdict {
	if class == nil || class.Provisioner == "" {
		return Verdict{Waits: missing(c, class, cs), Stuck: true}
	}
	if c.Spec.Selector != nil {
		return Verdict{Waits: selectorWithout(class), Stuck: true}
	}
	var able []Node
	for _, n := range on {
		if class.refuses(n) == "" && c.away(n) == "" {
			able = append(able, n)
		}
	}
	switch open := openNodes(able); {
	case len(open) > 0:
		return Verdict{Class: class, Nodes: open}
	case len(able) > 0:
		return Verdict{Waits: "waiting for a node that can hold the data and is not unschedulable"}
	case len(on) == 0:
		return Verdict{Waits: "waiting for a node that can hold the data"}
	case c.Origin != nil && c.Origin.Node != "":
		return Verdict{Waits: "waiting for node " + c.Origin.Node + ", which holds " + c.Origin.Name}
	default:
		return Verdict{Waits: class.unserved(), Stuck: true}
	}
}

// openNodes are those to make data on for a pod that is not known yet: none that
// is cordoned, and one with taints only where all have some.
func openNodes(able []Node) []Node {
	var open, free []Node
	for _, n := range able {
		if !n.Cordoned {
			open = append(open, n)
		}
		if !n.Cordoned && !n.Tainted {
			free = append(free, n)
		}
	}
	if len(free) > 0 {
		return free
	}
	return open
}

func missing(c *Claim, class *Class, cs *Classes) string {
	if class == nil {
		return cs.lacking(c)
	}
	return fmt.Sprintf("no PersistentVolume of class %s fits, and the class makes none (%s): add one", class.Name, noProvisioner)
}

func selectorWithout(class *Class) string {
	return "no PersistentVolume matches the selector, and StorageClass " + class.Name + " cannot make one with chosen labels: add one, or remove the selector"
}
