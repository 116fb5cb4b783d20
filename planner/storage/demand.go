package storage

import (
	"slices"
	"strings"
)

// Demand is what the claims of one pod ask of its node.
type Demand struct {
	bound   []*Volume
	open    []*Claim
	classes *Classes
	volumes []*Volume
	// bars are the nodes that keep a volume from others, by the volume's name.
	bars map[string][]Bar
}

// Bar is a node that keeps a volume from others which only one node may have, or
// from itself.
type Bar struct {
	Node string
	// Itself is set when the node must not have it, and others may.
	Itself bool
	// Why is a sentence's end; empty when a pod there uses the volume.
	Why string
}

// refuses says why a node can't have a volume; empty when it can.
func (b *Bar) refuses(volume string, n Node) string {
	switch {
	case b.Itself && b.Node == n.Name:
		return "cannot have volume " + volume + " yet: " + b.Why
	case b.Itself || b.Node == n.Name:
		return ""
	case b.Why != "":
		return "is not node " + b.Node + ", which has not let go of volume " + volume + " yet: " + b.Why
	}
	return "is not node " + b.Node + ", where volume " + volume + " is in use that only one node may have"
}

// Choice is what one claim gets if its pod runs on a node: Volume, or a new one
// of Class.
type Choice struct {
	Claim  *Claim
	Volume *Volume
	Class  *Class
}

// NewDemand puts together a pod's bound volumes and its claims that wait for
// it. Volumes are all there are, in the order of their names.
func NewDemand(bound []*Volume, open []*Claim, cs *Classes, volumes []*Volume, bars map[string][]Bar) *Demand {
	open = slices.Clone(open)
	slices.SortFunc(open, func(a, b *Claim) int {
		x, y := a.Size(), b.Size()
		if c := x.Cmp(y); c != 0 {
			return c
		}
		return a.Key.Compare(b.Key)
	})
	return &Demand{bound: bound, open: open, classes: cs, volumes: volumes, bars: bars}
}

// Fit says what the pod's claims get on a node, or why it can't run there: a
// refusal that goes on from "the node …".
func (d *Demand) Fit(n Node) (choices []Choice, refusal string) {
	for _, v := range d.bound {
		if why := v.reachable(n); why != "" {
			return nil, why
		}
		for i := range d.bars[v.Name] {
			if why := d.bars[v.Name][i].refuses(v.Name, n); why != "" {
				return nil, why
			}
		}
	}
	chosen := map[string]bool{}
	for _, c := range d.open {
		choice, why := d.choose(c, n, chosen)
		if why != "" {
			return nil, why
		}
		if choice.Volume != nil {
			chosen[choice.Volume.Name] = true
		}
		choices = append(choices, choice)
	}
	if why := d.exceeds(n, choices); why != "" {
		return nil, why
	}
	return choices, ""
}

func (d *Demand) choose(c *Claim, n Node, chosen map[string]bool) (Choice, string) {
	class, bound := d.classes.of(c)
	if v := smallest(c, bound, d.volumes, &n, chosen); v != nil {
		return Choice{Claim: c, Volume: v}, ""
	}
	switch {
	case class == nil || class.Provisioner == "":
		return Choice{}, "has no PersistentVolume that fits claim " + c.Key.Name
	case c.Spec.Selector != nil:
		return Choice{}, "has no PersistentVolume that the selector of claim " + c.Key.Name + " matches"
	}
	if why := class.refuses(n); why != "" {
		return Choice{}, why
	}
	if c.Origin != nil && (c.Origin.Waits != "" || c.foreign(class) != "") {
		return Choice{}, "cannot make the volume of claim " + c.Key.Name + ": " + c.Origin.Waits + c.foreign(class)
	}
	if why := c.away(n); why != "" {
		return Choice{}, why
	}
	return Choice{Claim: c, Class: class}, ""
}

// Key tells demands apart that may be refused differently.
func (d *Demand) Key() string {
	var b strings.Builder
	for _, v := range d.bound {
		b.WriteString("=" + v.Name)
	}
	for _, c := range d.open {
		b.WriteString("?" + c.Key.String())
	}
	return b.String()
}
