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
	// attached are the nodes on which other pods use a volume that only one node
	// may have, by the volume's name.
	attached map[string]string
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
func NewDemand(bound []*Volume, open []*Claim, cs *Classes, volumes []*Volume, attached map[string]string) *Demand {
	open = slices.Clone(open)
	slices.SortFunc(open, func(a, b *Claim) int {
		x, y := a.Size(), b.Size()
		if c := x.Cmp(y); c != 0 {
			return c
		}
		return a.Key.Compare(b.Key)
	})
	return &Demand{bound: bound, open: open, classes: cs, volumes: volumes, attached: attached}
}

// Fit says what the pod's claims get on a node, or why it can't run there: a
// refusal that goes on from "the node …".
func (d *Demand) Fit(n Node) (choices []Choice, refusal string) {
	for _, v := range d.bound {
		if why := v.reachable(n); why != "" {
			return nil, why
		}
		if at := d.attached[v.Name]; at != "" && at != n.Name {
			return nil, "is not node " + at + ", where volume " + v.Name + " is in use that only one node may have"
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
