package agent

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
)

// drivenVolume is one of a CSI driver that was made.
func drivenVolume(maker string) *nodes.Volume {
	v := testVolume("v")
	v.Provisioner, v.Node, v.Maker, v.Made = "x.csi.example.com", "", maker, true
	v.Spec.CSI = &corev1.CSIPersistentVolumeSource{Driver: v.Provisioner, VolumeHandle: "h"}
	return v
}

// TestWhatANodeHasOfAVolume is told before it is so, and no longer than it is.
func TestWhatANodeHasOfAVolume(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		defer kill()
		v := drivenVolume("n1")
		p := claimant("u1", v)
		a.Assign(with(assign(), v))
		settle(time.Second)
		if got := w.lastVolume("v"); got.Use != nodes.VolumeIdle {
			t.Fatalf("of a volume that no pod uses the node says %+v", got)
		}
		w.disk.Fail("v", "no answer")
		a.Assign(with(assign(p), v))
		settle(time.Second)
		if got := w.lastVolume("v"); got.Use != nodes.VolumeUsed {
			t.Fatalf("before the volume is staged the node says %+v", got)
		}
		w.disk.Fail("v", "")
		settle(time.Minute)
		if !w.last("u1").Ready || w.lastVolume("v").Use != nodes.VolumeUsed {
			t.Fatalf("pod %+v, volume %+v", w.last("u1"), w.lastVolume("v"))
		}
		w.disk.Fail("v", "busy")
		a.Assign(with(assign(stopped(p, 0)), v))
		settle(time.Minute)
		if got := w.lastVolume("v"); !w.gone("u1") || got.Use != nodes.VolumeUsed {
			t.Fatalf("of a volume that it cannot unstage the node says %+v", got)
		}
		w.disk.Fail("v", "")
		settle(5 * time.Minute)
		if got := w.lastVolume("v"); got.Use != nodes.VolumeIdle {
			t.Fatalf("after its pod the node says %+v", got)
		}
		a.Assign(with(assign(), drivenVolume("n2")))
		settle(time.Second)
		if got := w.lastVolume("v"); got.Use != nodes.VolumeUnknown {
			t.Errorf("of a volume that another looks after the node says %+v", got)
		}
	})
}

// TestDetachingFromOthers is done once for each order, by those whom it names, and
// not for an order that may have been taken back since it was stored.
func TestDetachingFromOthers(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		defer func() { kill() }()
		v := drivenVolume("n1")
		v.Detach = []nodes.Detachment{{Node: "n3", ID: "three", By: []string{"n2", "n1"}}, {Node: "n4", ID: "four", By: []string{"n2"}}}
		w.disk.Fail("v", "the storage does not answer")
		a.Assign(with(assign(), v))
		settle(time.Second)
		if got := w.lastVolume("v"); got.Phase != nodes.VolumeFailed || !strings.Contains(got.Message, "does not answer") || !slices.Equal(got.Detach, []nodes.DetachStatus{{Node: "n3"}}) {
			t.Fatalf("the node says %+v", got)
		}
		kill()
		w.disk.Fail("v", "")
		a, kill = w.start()
		hello, err := a.Hello(t.Context())
		if err != nil || len(hello.Volumes) != 1 || !slices.Equal(hello.Volumes[0].Detach, []nodes.DetachStatus{{Node: "n3"}}) {
			t.Fatalf("hello %+v, %v", hello.Volumes, err)
		}
		settle(10 * time.Minute)
		if got := w.disk.Detached(); len(got) != 0 {
			t.Fatalf("by an order of before it was detached: %v", got)
		}
		a.Assign(with(assign(), v))
		settle(10 * time.Minute)
		if got := w.disk.Detached(); !slices.Equal(got, []string{"v from n3 as three"}) {
			t.Fatalf("detached %v", got)
		}
		if got := w.lastVolume("v"); !slices.Equal(got.Detach, []nodes.DetachStatus{{Node: "n3", Done: true}}) {
			t.Fatalf("the node says %+v", got)
		}
		a.Assign(with(assign(), drivenVolume("n1")))
		settle(time.Second)
		if got := w.lastVolume("v"); len(got.Detach) != 0 {
			t.Fatalf("of an order that was taken back the node says %+v", got)
		}
		a.Assign(with(assign(), v))
		settle(time.Second)
		if got := w.disk.Detached(); len(got) != 2 {
			t.Errorf("after the second order it was detached: %v", got)
		}
	})
}

// TestAnOrderUnderWayIsKnown: it is told of until it is over, also when it was
// taken back meanwhile.
func TestAnOrderUnderWayIsKnown(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		defer kill()
		v := drivenVolume("n1")
		a.Assign(with(assign(), v))
		settle(time.Second)
		ordered := drivenVolume("n1")
		ordered.Detach = []nodes.Detachment{{Node: "n3", ID: "three", By: []string{"n1"}}}
		w.disk.SlowDetach(time.Minute)
		a.Assign(with(assign(), ordered))
		settle(time.Second)
		a.Assign(with(assign(), v))
		settle(time.Second)
		hello, err := a.Hello(t.Context())
		if err != nil || len(hello.Volumes) != 1 || !slices.Equal(hello.Volumes[0].Detach, []nodes.DetachStatus{{Node: "n3"}}) {
			t.Errorf("while it detaches, the node says %+v, %v", hello.Volumes, err)
		}
		settle(2 * time.Minute)
		if got := w.lastVolume("v"); len(got.Detach) != 0 {
			t.Errorf("afterwards the node says %+v", got)
		}
	})
}
