package agent

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
	"github.com/tallyman-dev/tallyman/nodes/runtime/fake"
	"github.com/tallyman-dev/tallyman/nodes/volume"
)

func testVolume(name string) *nodes.Volume {
	return &nodes.Volume{
		Name: name, UID: "1", Provisioner: nodes.LocalProvisioner, Node: "n1",
		Claim: desired.Key{Kind: "PersistentVolumeClaim", Namespace: "shop", Name: name + "-claim"},
		Spec:  corev1.PersistentVolumeSpec{Capacity: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
	}
}

// claimant is a pod that mounts a volume's claim at /data.
func claimant(uid string, v *nodes.Volume) *nodes.Pod {
	c := container("a")
	c.VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}
	return pod(uid, corev1.PodSpec{
		Containers: []corev1.Container{c},
		Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: v.Claim.Name},
		}}},
	})
}

func with(x *nodes.Assignment, volumes ...*nodes.Volume) *nodes.Assignment {
	x.Volumes = volumes
	return x
}

// lastVolume is the newest status that was reported of a volume.
func (w *world) lastVolume(name string) nodes.VolumeStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range slices.Backward(w.reports) {
		for _, s := range r.Volumes {
			if s.Name == name {
				return s
			}
		}
	}
	return nodes.VolumeStatus{}
}

func expectDisk(t *testing.T, w *world, want string) {
	t.Helper()
	if got := w.disk.String(); got != want {
		t.Fatalf("on disk:\n%swant:\n%s", got, want)
	}
}

func TestPodsWaitForTheirVolumes(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		mounts := map[string][]runtime.Mount{}
		w.behave = func(c runtime.Container) fake.Behaviour {
			mounts[c.ID] = c.Mounts
			return fake.Behaviour{}
		}
		a, kill := w.start()
		defer kill()
		v := testVolume("v")
		other := pod("u2", corev1.PodSpec{Containers: []corev1.Container{container("a")}})
		w.disk.Fail("v", "the disk is full")
		a.Assign(with(assign(claimant("u1", v), other), v))
		settle(5 * time.Second)
		expectRunning(t, w, "u2_a_0")
		s := w.last("u1")
		if !strings.Contains(s.Message, "volume v of persistentvolumeclaim \"v-claim\" is failed: the disk is full") {
			t.Errorf("the pod says: %s", s.Message)
		}
		if got := w.lastVolume("v"); got.Phase != nodes.VolumeFailed || got.Reason != "ProvisioningFailed" || got.Message != "the disk is full" {
			t.Errorf("%+v", got)
		}
		for _, reason := range []string{"FailedMount", "ProvisioningFailed"} {
			if !slices.Contains(w.reasons(), reason) {
				t.Errorf("no event %s in %v", reason, w.reasons())
			}
		}
		w.disk.Fail("v", "")
		settle(10 * time.Second)
		expectRunning(t, w, "u1_a_0", "u2_a_0")
		if got := w.lastVolume("v"); got.Phase != nodes.VolumeReady || got.Capacity != 1<<30 {
			t.Errorf("%+v", got)
		}
		if !slices.ContainsFunc(mounts["u1_a_0"], func(m runtime.Mount) bool { return m.Source == "/persistent/v-1" && m.Destination == "/data" }) {
			t.Errorf("mounts %+v", mounts["u1_a_0"])
		}
	})
}

func TestVolumesAreUnmountedWhenNoPodUsesThem(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		defer kill()
		v := testVolume("v")
		one, two := claimant("u1", v), claimant("u2", v)
		a.Assign(with(assign(one, two), v))
		settle(time.Second)
		expectDisk(t, w, "v-1 held 1Gi staged\n")
		a.Assign(with(assign(stopped(one, 0), two), v))
		settle(5 * time.Second)
		expectDisk(t, w, "v-1 held 1Gi staged\n")
		a.Assign(with(assign(stopped(two, 0)), v))
		settle(5 * time.Second)
		expectDisk(t, w, "v-1 held 1Gi\n")
	})
}

// A server that forgot a volume, or a revision without it, deletes nothing.
func TestOnlyDeleteRemovesData(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		defer kill()
		v := testVolume("v")
		p := claimant("u1", v)
		a.Assign(with(assign(p), v))
		settle(time.Second)
		a.Assign(assign())
		settle(time.Minute)
		expectDisk(t, w, "v-1 held 1Gi\n")
		r, err := a.Hello(t.Context())
		if err != nil || len(r.Volumes) != 1 || r.Volumes[0].Phase != nodes.VolumeReady || r.Volumes[0].Held == nil || r.Volumes[0].Held.Claim != v.Claim {
			t.Fatalf("%+v, %v", r.Volumes, err)
		}
		gone := *v
		gone.Delete = true
		a.Assign(with(assign(p), &gone))
		settle(time.Second)
		// The pod came back first: it waits, and nothing is deleted under it.
		if got := w.lastVolume("v"); got.Phase == nodes.VolumeGone {
			t.Fatalf("deleted under a pod: %+v", got)
		}
		a.Assign(with(assign(stopped(p, 0)), &gone))
		settle(5 * time.Second)
		if got := w.lastVolume("v"); got.Phase != nodes.VolumeGone {
			t.Errorf("%+v", got)
		}
		expectDisk(t, w, "")
	})
}

// After a boot, without a server, volumes are mounted again from what was stored.
func TestVolumesAreMountedAgainAfterABoot(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		v := testVolume("v")
		a.Assign(with(assign(claimant("u1", v)), v))
		settle(5 * time.Second)
		kill()
		w.disk.Reboot()
		w.runtime.Reboot()
		expectDisk(t, w, "v-1 held 1Gi\n")
		_, kill = w.start()
		defer kill()
		settle(time.Minute)
		expectDisk(t, w, "v-1 held 1Gi staged\n")
		if s := w.last("u1"); !s.Ready {
			t.Errorf("%+v", s)
		}
	})
}

func TestLostVolumesAreReportedNotMadeAnew(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		v := testVolume("v")
		p := claimant("u1", v)
		a.Assign(with(assign(p), v))
		settle(5 * time.Second)
		kill()
		w.disk.Lose(v)
		a, kill = w.start()
		defer kill()
		settle(5 * time.Second)
		a.Assign(with(assign(p), v)) // whose Made the server never set
		settle(time.Minute)
		if got := w.lastVolume("v"); got.Phase != nodes.VolumeFailed || got.Reason != "VolumeMissing" {
			t.Errorf("%+v", got)
		}
		if held := w.disk.String(); strings.Contains(held, "held") {
			t.Errorf("made anew: %s", held)
		}
	})
}

func TestStoppedPodDoesNotWaitForItsVolume(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		defer kill()
		p := claimant("u1", testVolume("v"))
		a.Assign(assign(p)) // nothing is bound to its claim
		settle(5 * time.Second)
		if s := w.last("u1"); !strings.Contains(s.Message, `persistentvolumeclaim "v-claim" has no volume on this node yet`) {
			t.Errorf("the pod says: %s", s.Message)
		}
		a.Assign(assign(stopped(p, 30*time.Second)))
		settle(time.Second)
		if !w.gone("u1") {
			t.Error("the pod is still there")
		}
	})
}

func TestVolumesGrow(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		defer kill()
		v := testVolume("v")
		a.Assign(with(assign(), v))
		settle(time.Second)
		grown := *v
		grown.Spec.Capacity = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("2Gi")}
		a.Assign(with(assign(), &grown))
		settle(time.Second)
		if got := w.lastVolume("v"); got.Capacity != 2<<30 || !slices.Contains(w.reasons(), "VolumeResizeSuccessful") {
			t.Errorf("%+v, events %v", got, w.reasons())
		}
	})
}

// imagePod mounts an image at /ext.
func imagePod(uid, ref string) *nodes.Pod {
	c := container("a")
	c.VolumeMounts = []corev1.VolumeMount{{Name: "ext", MountPath: "/ext"}}
	return pod(uid, corev1.PodSpec{
		Containers: []corev1.Container{c},
		Volumes: []corev1.Volume{{Name: "ext", VolumeSource: corev1.VolumeSource{
			Image: &corev1.ImageVolumeSource{Reference: ref, PullPolicy: corev1.PullIfNotPresent},
		}}},
	})
}

func TestImageVolumes(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		p := imagePod("u1", "extension")
		a.Assign(assign(p))
		settle(time.Minute)
		s := w.last("u1")
		if c := s.Containers[0]; c.State != nodes.Waiting || c.Reason != "ImagePullBackOff" || !strings.Contains(c.Message, "extension") {
			t.Fatalf("%+v", c)
		}
		w.runtime.Publish("extension", runtime.Image{ID: "sha256:ext"})
		settle(10 * time.Minute)
		expectRunning(t, w, "u1_a_0")
		if world := w.runtime.String(); !strings.Contains(world, "mounted sha256:ext for u1\n") {
			t.Errorf("not mounted:\n%s", world)
		}
		if needed := a.Images(); !slices.Contains(needed, "extension") {
			t.Errorf("may be collected: only %v are needed", needed)
		}
		kill()
		why := "the registry is away"
		w.noPull.Store(&why)
		a, kill = w.start() // which needs no registry for what it has
		defer kill()
		settle(time.Minute)
		if s := w.last("u1"); !s.Ready {
			t.Errorf("%+v", s)
		}
		a.Assign(assign(stopped(p, 0)))
		settle(time.Minute)
		if world := w.runtime.String(); strings.Contains(world, "mounted") {
			t.Errorf("kept:\n%s", world)
		}
	})
}

// The ephemeral volume of a pod that was replaced goes, though the new pod has a
// claim of the same name.
func TestDeletedVolumesGoThoughTheirClaimsNameIsBack(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		defer kill()
		v := testVolume("v")
		p := claimant("u1", v)
		a.Assign(with(assign(p), v))
		settle(time.Second)
		gone, fresh := *v, testVolume("w")
		gone.Delete, fresh.Claim = true, v.Claim
		q := claimant("u2", v)
		a.Assign(with(assign(p, q), &gone, fresh))
		settle(5 * time.Second)
		expectDisk(t, w, "v-1 held 1Gi staged\nw-1 held 1Gi staged\n")
		a.Assign(with(assign(stopped(p, 0), q), &gone, fresh))
		settle(5 * time.Second)
		expectDisk(t, w, "w-1 held 1Gi staged\n")
		if got := w.lastVolume("v"); got.Phase != nodes.VolumeGone {
			t.Errorf("%+v", got)
		}
	})
}

// A copy is made while nobody writes to its source, and nobody gets the source
// before it is made.
func TestCopiesWaitForThePodsOfTheirSource(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		defer kill()
		v, shot := testVolume("v"), testVolume("shot")
		shot.From, shot.Snapshot = &nodes.Origin{Name: "v", UID: "1"}, true
		shot.Claim = desired.Key{Group: "snapshot.storage.k8s.io", Kind: "VolumeSnapshot", Namespace: "shop", Name: v.Claim.Name}
		p := claimant("u1", v)
		a.Assign(with(assign(p), v))
		settle(time.Second)
		a.Assign(with(assign(p), shot, v))
		settle(time.Minute)
		expectDisk(t, w, "v-1 held 1Gi staged\n")
		if got := w.lastVolume("shot"); got.Phase != nodes.VolumePending || got.Reason != nodes.VolumeInUse || !strings.Contains(got.Message, "a pod uses volume v") {
			t.Errorf("the copy is %+v", got)
		}
		a.Assign(with(assign(stopped(p, 0)), shot, v))
		settle(5 * time.Second)
		expectDisk(t, w, "shot-1 held 1Gi\nv-1 held 1Gi\n")
		if got := w.lastVolume("shot"); got.Phase != nodes.VolumeReady {
			t.Errorf("the copy is %+v", got)
		}
		a.Assign(with(assign(claimant("u2", v)), shot, v))
		settle(5 * time.Second)
		expectRunning(t, w, "u2_a_0")
	})
}

// What a driver still works on is pending, is no failure, and is asked for again.
func TestUnreadySnapshotsAreAskedForAgain(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		defer kill()
		v := testVolume("v")
		v.Provisioner, v.Snapshot, v.From = "x.csi.example.com", true, &nodes.Origin{Name: "o", UID: "1", Volume: "handle"}
		w.disk.Busy("v", 3)
		a.Assign(with(assign(), v))
		settle(firstVolumeDelay / 2)
		if got := w.lastVolume("v"); got.Phase != nodes.VolumePending || got.Reason != volume.ReasonUnready {
			t.Errorf("while its driver works on it: %+v", got)
		}
		settle(20 * firstVolumeDelay)
		if got := w.lastVolume("v"); got.Phase != nodes.VolumeReady {
			t.Errorf("in the end: %+v", got)
		}
		if got := w.reasons(); !slices.Equal(got, []string{"ProvisioningSucceeded"}) {
			t.Errorf("events %v", got)
		}
	})
}
