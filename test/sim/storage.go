package sim

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/csi"
	"github.com/tallyman-dev/tallyman/nodes/volume"
	volumefake "github.com/tallyman-dev/tallyman/nodes/volume/fake"
)

const (
	kindClaim  = "PersistentVolumeClaim"
	kindVolume = "PersistentVolume"
	kindClass  = "StorageClass"

	// keptClass retains data; claims of Git whose names begin so have it.
	keptClass = "kept"
	// templateName is that of the claim template of StatefulSets.
	templateName = "data"
)

// storage is what a workload has of claims.
type storage struct {
	// claim of Git that the pods mount; empty for none.
	claim string
	// claimSize is the size in Gi of a StatefulSet's claims, 0 for none.
	claimSize                       int
	endsWhenScaled, endsWhenDeleted bool
}

func claimKey(namespace, name string) desired.Key {
	return desired.Key{Kind: kindClaim, Namespace: namespace, Name: name}
}

// setOf is the StatefulSet, and the ordinal, for which a claim was made by its
// template; false for other claims.
func setOf(claim desired.Key) (desired.Key, int, bool) {
	rest, made := strings.CutPrefix(claim.Name, templateName+"-")
	i := strings.LastIndexByte(rest, '-')
	if !made || i < 0 {
		return desired.Key{}, 0, false
	}
	ordinal, err := strconv.Atoi(rest[i+1:])
	return desired.Key{Group: "apps", Kind: kindStatefulSet, Namespace: claim.Namespace, Name: rest[:i]}, ordinal, err == nil
}

func claimObject(meta metav1.ObjectMeta, size int) *corev1.PersistentVolumeClaim {
	v := &corev1.PersistentVolumeClaim{ObjectMeta: meta, Spec: claimSpec(size)}
	if strings.HasPrefix(meta.Name, keptClass) {
		v.Spec.StorageClassName = new(string)
		*v.Spec.StorageClassName = keptClass
	}
	return v
}

func claimSpec(size int) corev1.PersistentVolumeClaimSpec {
	return corev1.PersistentVolumeClaimSpec{
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: gigabytes(size)}},
	}
}

func gigabytes(n int) resource.Quantity {
	return *resource.NewQuantity(int64(n)<<30, resource.BinarySI)
}

func classObject(meta metav1.ObjectMeta) *storagev1.StorageClass {
	retain, delayed, grows := corev1.PersistentVolumeReclaimRetain, storagev1.VolumeBindingWaitForFirstConsumer, true
	return &storagev1.StorageClass{
		ObjectMeta: meta, Provisioner: nodes.LocalProvisioner, ReclaimPolicy: &retain, VolumeBindingMode: &delayed, AllowVolumeExpansion: &grows,
	}
}

// claimTemplates are those of a StatefulSet.
func (w *workload) claimTemplates() []corev1.PersistentVolumeClaim {
	if w.claimSize == 0 {
		return nil
	}
	return []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: templateName}, Spec: claimSpec(w.claimSize)}}
}

func (w *workload) retention() *appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy {
	rule := func(ends bool) appsv1.PersistentVolumeClaimRetentionPolicyType {
		if ends {
			return appsv1.DeletePersistentVolumeClaimRetentionPolicyType
		}
		return appsv1.RetainPersistentVolumeClaimRetentionPolicyType
	}
	return &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{WhenDeleted: rule(w.endsWhenDeleted), WhenScaled: rule(w.endsWhenScaled)}
}

// disk is what a machine keeps of persistent volumes: the fake one at a real
// one's pace, with the witness looking on.
type disk struct {
	*volumefake.Persistent
	machine *machine
	pace    *pace
}

func (d *disk) begin(ctx context.Context) error {
	if err := d.pace.take(ctx, 60*time.Millisecond); err != nil {
		return err
	}
	return d.machine.runtime.alive()
}

// Ensure implements agent.Persistent.
func (d *disk) Ensure(ctx context.Context, v *nodes.Volume) (nodes.VolumeStatus, error) {
	if err := d.begin(ctx); err != nil {
		return nodes.VolumeStatus{}, err
	}
	return d.Persistent.Ensure(ctx, v)
}

// Stage implements agent.Persistent.
func (d *disk) Stage(ctx context.Context, v *nodes.Volume, w csi.Wish) (volume.Volume, error) {
	if err := d.begin(ctx); err != nil {
		return volume.Volume{}, err
	}
	return d.Persistent.Stage(ctx, v, w)
}

// Unstage implements agent.Persistent.
func (d *disk) Unstage(ctx context.Context, v *nodes.Volume, unused func() bool) error {
	if err := d.begin(ctx); err != nil {
		return err
	}
	return d.Persistent.Unstage(ctx, v, unused)
}

// Delete implements agent.Persistent.
func (d *disk) Delete(ctx context.Context, v *nodes.Volume) error {
	if err := d.begin(ctx); err != nil {
		return err
	}
	d.machine.world.witness.deletes(d.machine, v)
	return d.Persistent.Delete(ctx, v)
}

// held are the volumes whose data is on the disk.
func (d *disk) held() []*nodes.Volume {
	list, err := d.Persistent.Held(context.Background())
	if err != nil {
		d.machine.world.witness.report(err)
	}
	return list
}

// fate is what the witness knows of one claim.
type fate struct {
	// unwanted is since when Git, by the rules of the manual, does not want the
	// claim any more; zero while it does.
	unwanted time.Time
	// endsWithSet is the whenDeleted: Delete of its StatefulSet when that was last
	// in force, orphaned that its Namespace left Git since.
	endsWithSet, orphaned bool
	// volume is the one that its pods were given last.
	volume string
}

// ledger is what the witness knows of data.
type ledger struct {
	keep  time.Duration
	fates map[desired.Key]*fate
	// owners are the first claims of volumes, ordered those whose end the planner ordered.
	owners  map[string]desired.Key
	ordered map[string]bool
}

func newLedger(keep time.Duration) *ledger {
	return &ledger{keep: keep, fates: map[desired.Key]*fate{}, owners: map[string]desired.Key{}, ordered: map[string]bool{}}
}

func (l *ledger) fate(k desired.Key) *fate {
	if l.fates[k] == nil {
		l.fates[k] = &fate{}
	}
	return l.fates[k]
}

// judge decides anew which claims are wanted, by what is in force.
func (l *ledger) judge(i *intent, v *view, now time.Time) {
	for k := range v.claims {
		l.fate(k)
	}
	for k, f := range l.fates {
		switch wanted := f.wanted(k, i, v); {
		case wanted:
			f.unwanted = time.Time{}
		case f.unwanted.IsZero():
			f.unwanted = now
		}
	}
}

func (f *fate) wanted(k desired.Key, i *intent, v *view) bool {
	set, ordinal, made := setOf(k)
	w, there := i.workloads[set]
	gone := k.Namespace != "default" && !i.namespaces[k.Namespace] && !i.uses(k.Namespace)
	switch {
	case !made:
		_, found := i.claims[k]
		return found
	case there && w.claimSize == 0:
		return !f.orphaned
	case there:
		f.endsWithSet = w.endsWhenDeleted
		if ordinal < max(w.replicas, v.wanted[set]) {
			f.orphaned = false
			return true
		}
		return !w.endsWhenScaled && !f.orphaned
	case gone:
		f.orphaned = true
	}
	return !f.endsWithSet && !f.orphaned
}

// dataOutlivesItsClaim: invariant 5. The end of data is ordered when its
// reclaim rule says so, and its time of grace is over.
func dataOutlivesItsClaim(s *step) error {
	if s.intent != nil {
		s.data.judge(s.intent, s.after, s.now)
	}
	for _, a := range s.plan.Assignments {
		for _, v := range a.Volumes {
			id := volumeID(v)
			if !v.Delete || s.data.ordered[id] {
				continue
			}
			s.data.ordered[id] = true
			f := s.data.fate(v.Claim)
			switch {
			case v.Class == keptClass:
				return violated(5, "the end of volume %s is ordered, whose class retains it", v.Name)
			case f.unwanted.IsZero() && f.volume != id && f.volume != "":
				// Its claim came back where this volume was not, and has another one.
			case f.unwanted.IsZero() || s.now.Sub(f.unwanted) < s.data.keep:
				return violated(5, "the end of volume %s of %s is ordered; unwanted since %v, now %v, the time of grace is %v", v.Name, v.Claim, f.unwanted, s.now, s.data.keep)
			}
		}
	}
	return nil
}

func volumeID(v *nodes.Volume) string { return v.Name + "-" + v.UID }

// losesData reports whether a revision ends claims whose data is deleted some
// time after, as the manual's guard means it.
func (x *witness) losesData(v *view, from, to *intent) bool {
	gone := map[desired.Key]bool{}
	for _, k := range from.gone(to) {
		gone[k] = true
	}
	for k, c := range v.claims {
		if _, stays := to.claims[k]; stays || c.Volume == "" || c.Class == keptClass {
			continue
		}
		set, _, made := setOf(k)
		namespace := gone[namespaceKey(k.Namespace)] && !to.uses(k.Namespace)
		if gone[k] || made && gone[set] && x.data.fate(k).endsWithSet || namespace {
			return true
		}
	}
	return false
}

// mounts is told before a pod gets the volume behind one of its claims.
func (x *witness) mounts(m *machine, claim desired.Key, volume string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	f := x.data.fate(claim)
	if owner, known := x.data.owners[volume]; known && owner != claim {
		x.fail(violated(5, "%s is given volume %s on %s, which holds the data of %s", claim, volume, m.name, owner))
	}
	if f.volume != "" && f.volume != volume && !x.data.ordered[f.volume] {
		x.fail(violated(5, "%s is given volume %s on %s; its data is on %s", claim, volume, m.name, f.volume))
	}
	x.data.owners[volume], f.volume = claim, volume
}

// deletes is told before an agent ends data.
func (x *witness) deletes(m *machine, v *nodes.Volume) {
	x.mu.Lock()
	defer x.mu.Unlock()
	id := volumeID(v)
	if !x.data.ordered[id] {
		x.fail(violated(5, "node %s deletes volume %s of %s, and nobody ordered it", m.name, v.Name, v.Claim))
	}
	for _, other := range x.world.nodes {
		for _, c := range other.runtime.running() {
			if uid := nodes.UID(c.Labels[labelPod]); other.volumes.has(uid, id) {
				x.fail(violated(5, "node %s deletes volume %s, and pod %s uses it", m.name, v.Name, uid))
			}
		}
	}
}

// dataAgrees compares what the disks hold with the claims of Git.
func (w *world) dataAgrees(i *intent) error {
	held := map[desired.Key]*nodes.Volume{}
	o := w.serving().loop.Overview()
	known := map[string]bool{}
	for _, h := range o.Objects {
		known[h.Key.Kind+" "+h.Key.Name] = true
	}
	for _, m := range w.nodes {
		for _, v := range m.disk.held() {
			switch other := held[v.Claim]; {
			case !known[kindVolume+" "+v.Name]:
				return violated(2, "node %s holds volume %s, which nobody knows of", m.name, v.Name)
			case v.Delete || !v.Released.IsZero():
			case other != nil:
				return violated(5, "%s has the volumes %s and %s", v.Claim, other.Name, v.Name)
			default:
				held[v.Claim] = v
			}
		}
		if err := m.isUnmounted(); err != nil {
			return err
		}
	}
	return w.claimsHaveData(i, held)
}

// claimsHaveData looks for the claims that pods need, and at their sizes.
func (w *world) claimsHaveData(i *intent, held map[desired.Key]*nodes.Volume) error {
	for k, v := range i.workloads {
		if _, scaled := i.scalerOf(k); scaled {
			v.replicas = w.witness.wantedOf(k)
		}
		if v.claim != "" && k.Kind != kindJob && k.Kind != kindCronJob && v.replicas > 0 && held[claimKey(k.Namespace, v.claim)] == nil {
			return violated(2, "%s has no volume, and %s uses it", claimKey(k.Namespace, v.claim), k)
		}
		for n := 0; v.claimSize > 0 && n < v.replicas; n++ {
			if c := claimKey(k.Namespace, fmt.Sprintf("%s-%s-%d", templateName, k.Name, n)); held[c] == nil {
				return violated(2, "%s has no volume, and %s uses it", c, k)
			}
		}
	}
	for k, size := range i.claims {
		if v := held[k]; v != nil && v.Spec.Capacity.Storage().Cmp(gigabytes(size)) < 0 {
			return violated(2, "%s has %s instead of %dGi", k, v.Spec.Capacity.Storage(), size)
		}
	}
	return nil
}

// isUnmounted reports volumes that are mounted and that no pod has.
func (m *machine) isUnmounted() error {
	for line := range strings.Lines(m.disk.String()) {
		id, state, _ := strings.Cut(strings.TrimSpace(line), " ")
		if strings.HasSuffix(state, "staged") && !m.volumes.anyHas(id) {
			return fmt.Errorf("node %s: volume %s is still mounted", m.name, id)
		}
	}
	return nil
}

// dataGoes waits until the time of grace of all data is over, when it is short,
// and sees that what nobody wants is gone then.
func (w *world) dataGoes() error {
	if !w.extras.storage || w.extras.keep > time.Hour {
		return nil
	}
	time.Sleep(w.extras.keep + time.Minute)
	for _, m := range w.nodes {
		for _, v := range m.disk.held() {
			if v.Class != keptClass && !w.witness.wants(v.Claim) {
				return violated(5, "node %s still holds volume %s of %s, whose time of grace is over: released %v", m.name, v.Name, v.Claim, v.Released)
			}
		}
	}
	return nil
}

// wants reports whether Git wants a claim, or a pod has it that is still there,
// as those of ended Jobs are.
func (x *witness) wants(claim desired.Key) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	for uid := range x.last.pods {
		if p := x.decided[uid]; p != nil && p.Namespace == claim.Namespace && slices.ContainsFunc(p.Template.Spec.Volumes, func(v corev1.Volume) bool {
			return p.Claim(&v) == claim.Name
		}) {
			return true
		}
	}
	return x.data.fate(claim).unwanted.IsZero()
}
