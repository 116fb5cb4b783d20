package planner

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/benbjohnson/immutable"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner/storage"
)

// claim is one PersistentVolumeClaim: of Git, or made for a pod. It outlives
// its object until the last pod that uses it is gone. Immutable.
type claim struct {
	claimRecord
	// wants is what the rules see of it.
	wants *storage.Claim
	// object is nil when Git doesn't have it.
	object *desired.Object
	// waits says why it has no volume; consumer that only a pod is missing, stuck
	// that nothing changes by itself.
	waits           string
	consumer, stuck bool
}

// claimRecord is the decision about a claim.
type claimRecord struct {
	Key     desired.Key `json:"key"`
	UID     string      `json:"uid"`
	Created time.Time   `json:"created"`
	// Owner is the StatefulSet or the pod that the claim was made for; zero for
	// one of Git.
	Owner desired.Key `json:"owner,omitzero"`
	// Pod is set for the claim of an ephemeral volume, which ends with the pod.
	Pod nodes.UID `json:"pod,omitempty"`
	// Ordinal of the StatefulSet's pod.
	Ordinal int `json:"ordinal,omitempty"`
	// Adopted is set when a node holds the data and nobody knows who wants it: it
	// is kept until somebody does.
	Adopted bool `json:"adopted,omitempty"`
	// EndsWithOwner is the StatefulSet's whenDeleted: Delete.
	EndsWithOwner bool `json:"ends_with_owner,omitempty"`
	// Unwanted is set when its Namespace left Git.
	Unwanted    bool                             `json:"unwanted,omitempty"`
	Labels      map[string]string                `json:"labels,omitempty"`
	Annotations map[string]string                `json:"annotations,omitempty"`
	Spec        corev1.PersistentVolumeClaimSpec `json:"spec"`
	// Volume is the name of its PersistentVolume; empty while it has none.
	Volume string `json:"volume,omitempty"`
	// Holder is the node whose pods use it, of a volume that only one node at a time
	// may have: should the record be lost, a node that has not spoken since may run them.
	Holder string `json:"holder,omitempty"`
}

func (st *step) setClaim(c *claim) {
	c.wants = storage.NewClaim(c.Key, c.Annotations, &c.Spec)
	st.claims = st.claims.Set(c.Key, c)
	st.decide(kindOfClaim, keyText(c.Key), c.claimRecord)
	st.stir.claims = true
}

// forgetClaim drops a claim that nothing uses. Its volume is released.
func (st *step) forgetClaim(c *claim, reason string) {
	if v, ok := st.volumes.Get(c.Volume); ok && v.Bound && v.Claim == c.Key {
		st.freeVolume(v, c.Pod != "")
	}
	st.claims = st.claims.Delete(c.Key)
	st.decide(kindOfClaim, keyText(c.Key), nil)
	st.act("forget", c.Key, "", reason)
}

// newClaim begins a claim; what asks for it is the caller's to fill in.
func (st *step) newClaim(k desired.Key) *claim {
	return &claim{claimRecord: claimRecord{Key: k, UID: newUID(st.config.SecretKey, keyText(k), st.force.Revision.SHA, st.now), Created: st.now}}
}

// applyClaims takes in the claims of Git, and ends those that nobody wants.
func (st *step) applyClaims() {
	for _, o := range st.snapshot.Kind(kindClaim) {
		if v, ok := o.Value.(*corev1.PersistentVolumeClaim); ok {
			st.applyClaim(o, v)
		}
	}
	for _, c := range entries(st.claims) {
		if why := st.ends(c); why != "" && (c.Pod != "" || st.usersOf(c.Key) == 0) {
			st.forgetClaim(c, why)
		}
	}
	for _, c := range entries(st.claims) {
		st.enlarge(c)
	}
	for k, users := range entries(st.users) {
		for uid := range keys(users) {
			st.makeClaim(k, uid)
		}
	}
}

// applyClaim takes over an object. One that Tallyman made and Git then writes
// is Git's from then on.
func (st *step) applyClaim(o *desired.Object, v *corev1.PersistentVolumeClaim) {
	old, known := st.claims.Get(o.Key)
	if known && old.object != nil && old.object.Fingerprint == o.Fingerprint {
		if old.object != o {
			changed := *old
			changed.object = o
			st.claims = st.claims.Set(o.Key, &changed)
		}
		return
	}
	c := st.newClaim(o.Key)
	if known {
		changed := *old
		c = &changed
	}
	c.object = o
	if known && old.ofGit() && equality.Semantic.DeepEqual(&old.Spec, &v.Spec) && maps.Equal(old.Labels, v.Labels) && maps.Equal(old.Annotations, v.Annotations) {
		st.claims = st.claims.Set(o.Key, c)
		return
	}
	c.Owner, c.Pod, c.Adopted, c.EndsWithOwner, c.Unwanted, c.Ordinal = desired.Key{}, "", false, false, false, 0
	c.Labels, c.Annotations, c.Spec = v.Labels, v.Annotations, v.Spec
	st.setClaim(c)
}

// ofGit reports whether the claim was written in Git, or is.
func (c *claim) ofGit() bool { return c.Owner.IsZero() && !c.Adopted && !c.Unwanted }

// ends says why a claim is to go; empty when it stays.
func (st *step) ends(c *claim) string {
	switch {
	case st.snapshot.Get(c.Key) != nil || c.Adopted:
		return ""
	case c.Unwanted:
		return "its Namespace is no longer in Git"
	case c.Pod != "":
		if _, p := st.pod(c.Pod); p == nil {
			return "the pod of this ephemeral volume is gone"
		}
		return ""
	case c.Owner.IsZero():
		return "no longer in Git"
	default:
		return st.endsByPolicy(c)
	}
}

// endsByPolicy follows a StatefulSet's persistentVolumeClaimRetentionPolicy.
func (st *step) endsByPolicy(c *claim) string {
	o := st.sized(st.snapshot.Get(c.Owner))
	if o == nil {
		if c.EndsWithOwner {
			return c.Owner.String() + " is no longer in Git, and its whenDeleted is Delete"
		}
		return ""
	}
	t := claimTemplatesOf(o)
	if t == nil {
		return ""
	}
	if t.DeleteWhenDeleted != c.EndsWithOwner {
		changed := *c
		changed.EndsWithOwner = t.DeleteWhenDeleted
		st.setClaim(&changed)
	}
	if wanted := c.Ordinal >= t.Start && c.Ordinal < t.Start+t.Replicas; !wanted && t.DeleteWhenScaled {
		return fmt.Sprintf("%s has no pod %d any more, and its whenScaled is Delete", c.Owner, c.Ordinal)
	}
	return ""
}

// enlarge has the claim of a StatefulSet follow its template to a larger size:
// nobody can edit it.
func (st *step) enlarge(c *claim) {
	o := st.snapshot.Get(c.Owner)
	if c.Pod != "" || o == nil {
		return
	}
	t := claimTemplatesOf(o)
	if t == nil {
		return
	}
	if size := t.larger(c); size != nil {
		changed := *c
		changed.Spec.Resources.Requests = corev1.ResourceList{corev1.ResourceStorage: *size}
		st.setClaim(&changed)
	}
}

// makeClaim makes the claim that a pod has of its own, if it is not there.
func (st *step) makeClaim(k desired.Key, uid nodes.UID) {
	g, p := st.pod(uid)
	if p == nil {
		return
	}
	old, known := st.claims.Get(k)
	if known && !old.Adopted && !(old.Unwanted && p.leaving == "" && p.Stop == nil) {
		return
	}
	v := p.volumeOf(k)
	if v == nil {
		return
	}
	c := st.newClaim(k)
	if known {
		changed := *old
		c = &changed
	}
	var ok bool
	if v.Ephemeral != nil {
		ok = c.forEphemeral(p, v.Ephemeral.VolumeClaimTemplate)
	} else {
		ok = c.forOrdinal(g, p, v.Name)
	}
	if ok {
		c.Adopted, c.Unwanted = false, false
		st.setClaim(c)
	}
}

// forEphemeral fills in what an ephemeral volume asks for.
func (c *claim) forEphemeral(p *pod, t *corev1.PersistentVolumeClaimTemplate) bool {
	if t == nil {
		return false
	}
	c.Owner, c.Pod = p.Key(), p.UID
	c.Labels, c.Annotations, c.Spec = t.Labels, t.Annotations, t.Spec
	return true
}

// forOrdinal fills in what the claim template of this name asks for; false when
// there is none.
func (c *claim) forOrdinal(g *group, p *pod, name string) bool {
	if g.object == nil || p.Claims[name] == "" {
		return false
	}
	templates := claimTemplatesOf(g.object)
	if templates == nil {
		return false
	}
	i := slices.IndexFunc(templates.Templates, func(t corev1.PersistentVolumeClaim) bool { return t.Name == name })
	if i < 0 {
		return false
	}
	t := &templates.Templates[i]
	c.Owner, c.Ordinal, c.EndsWithOwner = g.key, p.Ordinal, templates.DeleteWhenDeleted
	c.Labels, c.Annotations, c.Spec = t.Labels, t.Annotations, t.Spec
	return true
}

// claimsOf lists the claims behind a pod's volumes.
func claimsOf(p *nodes.Pod) []desired.Key {
	var out []desired.Key
	for i := range p.Template.Spec.Volumes {
		if name := p.Claim(&p.Template.Spec.Volumes[i]); name != "" {
			out = append(out, storage.ClaimKey(p.Namespace, name))
		}
	}
	return out
}

// volumeOf finds the volume of the template behind which a claim is.
func (p *pod) volumeOf(k desired.Key) *corev1.Volume {
	for i := range p.Template.Spec.Volumes {
		if v := &p.Template.Spec.Volumes[i]; p.Claim(v) == k.Name {
			return v
		}
	}
	return nil
}

// use notes that a pod uses its claims; leaveClaims that it is gone.
func (st *step) use(p *pod) {
	for _, k := range p.claims {
		users, ok := st.users.Get(k)
		if !ok {
			users = immutable.NewSortedMap[nodes.UID, struct{}](comparer[nodes.UID](compareUID))
		}
		st.users = st.users.Set(k, users.Set(p.UID, struct{}{}))
		st.storageDirty = true
	}
	st.hold(p.claims...)
}

func (st *step) leaveClaims(p *pod) {
	for _, k := range p.claims {
		if c, ok := st.claims.Get(k); ok && c.Holder == p.Node {
			st.setHolder(c, "") // until it is noted whether there are others
		}
		users, ok := st.users.Get(k)
		if !ok {
			continue
		}
		if users = users.Delete(p.UID); users.Len() == 0 {
			st.users = st.users.Delete(k)
		} else {
			st.users = st.users.Set(k, users)
		}
		st.storageDirty = true
	}
	st.hold(p.claims...)
}

func (s *State) usersOf(k desired.Key) int {
	if users, ok := s.users.Get(k); ok {
		return users.Len()
	}
	return 0
}

// restoreClaim takes over a decision of the record.
func (st *step) restoreClaim(r *claimRecord) {
	if _, known := st.claims.Get(r.Key); known {
		return
	}
	st.claims = st.claims.Set(r.Key, &claim{claimRecord: *r, wants: storage.NewClaim(r.Key, r.Annotations, &r.Spec)})
	st.storageDirty = true
}
