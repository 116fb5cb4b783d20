package storage

import (
	"fmt"

	"github.com/tallyman-dev/tallyman/nodes"
)

// exceeds says which driver would have more volumes on a node than it allows
// there, by the rule of Kubernetes' scheduler: what several pods use counts once.
// Empty when none would.
func (d *Demand) exceeds(n Node, choices []Choice) string {
	for _, limit := range n.DriverNodes {
		if limit.MaxVolumes <= 0 {
			continue
		}
		more := d.volumesOf(limit.Name, choices)
		if len(more) == 0 {
			continue
		}
		have, added := n.Having(limit.Name), int64(0)
		for volume := range more {
			if !have[volume] {
				added++
			}
		}
		if added > 0 && int64(len(have))+added > limit.MaxVolumes {
			return fmt.Sprintf("would have more than the %d volumes that storage driver %s allows there", limit.MaxVolumes, limit.Name)
		}
	}
	return ""
}

// volumesOf are the volumes of a driver that the pod would have, those that are
// yet to be made by the names of their claims.
func (d *Demand) volumesOf(driver string, choices []Choice) map[string]bool {
	out := map[string]bool{}
	for _, v := range d.bound {
		if v.CSI == driver {
			out[v.Name] = true
		}
	}
	for _, c := range choices {
		switch {
		case c.Volume != nil && c.Volume.CSI == driver:
			out[c.Volume.Name] = true
		case c.Volume == nil && c.Class.Provisioner == driver && driver != nodes.LocalProvisioner:
			out["of "+c.Claim.Key.String()] = true
		}
	}
	return out
}
