package planner

import (
	"crypto/hmac"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// sealSize is the length of a seal, in bytes.
const sealSize = 16

// sealPod proves that a pod was bound to a node: who it is, what it reads, and
// by which labels others find it. A node could else make up a pod, after the
// record was lost, and be sent Secrets, tokens or requests.
func (c *Config) sealPod(p *nodes.Pod, node string) []byte {
	texts := []string{
		"pod seal", node, string(p.UID), p.Namespace, p.Name, keyText(p.Owner), keyText(p.Workload),
		strconv.FormatUint(p.Incarnation, 10), strconv.Itoa(p.Ordinal), p.Hostname, p.Subdomain, p.Template.Spec.ServiceAccountName,
	}
	labels := p.AllLabels()
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		texts = append(texts, "label", k, labels[k])
	}
	texts = appendKeys(texts, "reads", references(p.Namespace, &p.Template.Spec))
	claims := claimsOf(p)
	slices.SortFunc(claims, desired.Key.Compare)
	return digest(c.SecretKey, appendKeys(texts, "claim", claims)...)[:sealSize]
}

func appendKeys(texts []string, what string, keys []desired.Key) []string {
	for _, k := range keys {
		texts = append(texts, what, keyText(k))
	}
	return texts
}

// sealVolume proves that the server said of a volume whose claim has it, where
// its data is and through which Secrets it is reached. Capacity, and how far a
// node is with it, may change without one.
func (s *State) sealVolume(v *nodes.Volume) []byte {
	texts := []string{
		"volume seal", v.Name, v.UID, keyText(v.Claim), v.Provisioner, v.Class, v.Node, strconv.FormatBool(v.Snapshot),
		v.Released.UTC().Format(time.RFC3339Nano), string(mustJSON(v.Spec.PersistentVolumeSource)),
	}
	for _, k := range slices.Sorted(maps.Keys(v.Parameters)) {
		texts = append(texts, "parameter", k, v.Parameters[k])
	}
	if from := v.From; from != nil {
		texts = append(texts, "from", from.Name, from.UID, from.Volume, from.Snapshot)
	}
	return digest(s.config.SecretKey, texts...)[:sealSize]
}

// believesPod reports whether a node may hold a pod that nobody else knows of.
// The server's own machine needs no proof: who is root there has the key.
func (s *State) believesPod(p *nodes.Pod, r *nodes.Report) bool {
	return r.Local || s.config.Bound(r.Node, p)
}

// Bound reports whether a pod bears the seal of having been bound to a node.
func (c *Config) Bound(node string, p *nodes.Pod) bool {
	return p.Template != nil && hmac.Equal(p.Seal, c.sealPod(p, node))
}

// believesVolume is the same of a volume.
func (s *State) believesVolume(v *nodes.Volume, r *nodes.Report) bool {
	return r.Local || (v.Node == "" || v.Node == r.Node) && hmac.Equal(v.Seal, s.sealVolume(v))
}

// disbelieve says what a node made up, or has kept from another cluster.
func (st *step) disbelieve(node string, made []string) {
	if len(made) == 0 {
		return
	}
	st.event(desired.Key{Kind: kindNode, Name: node}, true, "NotAdopted",
		"The node says that it holds "+few(made)+", but this server never gave it that: it is not taken over")
}
