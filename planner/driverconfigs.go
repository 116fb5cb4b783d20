package planner

import (
	"maps"
	"slices"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// isConfig reports whether nodes get objects of this kind, as nodes.Config:
// ConfigMaps, Secrets, and what is said of storage drivers.
func isConfig(k desired.Key) bool {
	return k.Group == "" && (k.Kind == kindConfigMap || k.Kind == kindSecret) || k == nodes.DriverKey(k.Name)
}

// configsFor names what a node is to know: what its pods read, and what it needs
// to use the volumes of storage drivers. Sorted.
func (s *State) configsFor(n *node, volumes []*nodes.Volume) []desired.Key {
	wanted := map[desired.Key]bool{}
	for k := range keys(n.configs) {
		wanted[k] = true
	}
	for _, v := range volumes {
		for _, k := range v.DriverConfigs() {
			wanted[k] = true
		}
	}
	return slices.SortedFunc(maps.Keys(wanted), desired.Key.Compare)
}

// needsAny reports whether a node has one of these configs, or should have it.
func (s *State) needsAny(n *node, changed []desired.Key) bool {
	for _, c := range changed {
		if _, used := n.configs.Get(c); used {
			return true
		}
	}
	return slices.ContainsFunc(s.volumesFor(n), func(v *nodes.Volume) bool {
		return slices.ContainsFunc(v.DriverConfigs(), func(k desired.Key) bool { return slices.Contains(changed, k) })
	})
}
