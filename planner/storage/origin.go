package storage

// foreign says why no class can make the claim's volume from its data source;
// empty when one can, or there is no source.
func (c *Claim) foreign(class *Class) string {
	switch {
	case c.Origin == nil || class == nil:
		return ""
	case class.Provisioner != c.Origin.Provisioner:
		return "StorageClass " + class.Name + " has the provisioner " + class.Written + ", and " + c.Origin.Name + " is of " + c.Origin.Provisioner +
			": name a class of the same provisioner"
	case c.Spec.Selector != nil:
		return "a claim with a data source gets a new volume, which no selector can choose: remove the selector"
	}
	return ""
}

// away says why a node can't make the claim's volume from its data source.
func (c *Claim) away(n Node) string {
	if c.Origin == nil || c.Origin.Node == "" || c.Origin.Node == n.Name {
		return ""
	}
	return "does not hold " + c.Origin.Name + ", which claim " + c.Key.Name + " begins with and which is on node " + c.Origin.Node
}
