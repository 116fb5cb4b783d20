// Package volumetest is what every keeper of persistent volumes must do: one
// suite that the fake and the real part pass alike.
package volumetest

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/csi"
	"github.com/tallyman-dev/tallyman/nodes/volume"
)

// Subject keeps the volumes of one node.
type Subject interface {
	Ensure(ctx context.Context, v *nodes.Volume) (nodes.VolumeStatus, error)
	Stage(ctx context.Context, v *nodes.Volume, w csi.Wish) (volume.Volume, error)
	Unstage(ctx context.Context, v *nodes.Volume, unused func() bool) error
	Delete(ctx context.Context, v *nodes.Volume) error
	Held(ctx context.Context) ([]*nodes.Volume, error)
	Sweep(ctx context.Context, assigned func(name, uid string) bool) error
	Reset(ctx context.Context, remove bool) error
}

// Run runs the suite; each part gets an empty node from setUp.
func Run(t *testing.T, setUp func(t *testing.T) Subject) {
	for name, part := range map[string]func(*testing.T, Subject){
		"life":              testLife,
		"repeated":          testRepeated,
		"never shrinks":     testShrink,
		"missing":           testMissing,
		"made by others":    testStatic,
		"reset keeps data":  testReset,
		"uids tell by name": testUIDs,
		"copies":            testCopies,
	} {
		t.Run(name, func(t *testing.T) { part(t, setUp(t)) })
	}
}

// Volume is a small one of the local provisioner.
func Volume(name, uid, size string) *nodes.Volume {
	return &nodes.Volume{
		Name: name, UID: uid, Provisioner: nodes.LocalProvisioner, Class: "standard", Node: "n1",
		Claim: desired.Key{Kind: "PersistentVolumeClaim", Namespace: "shop", Name: "data"},
		Spec:  corev1.PersistentVolumeSpec{Capacity: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}},
	}
}

func unused() bool { return true }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func ensure(t *testing.T, s Subject, v *nodes.Volume) nodes.VolumeStatus {
	t.Helper()
	status, err := s.Ensure(t.Context(), v)
	must(t, err)
	if status.Name != v.Name || status.UID != v.UID || status.Phase != nodes.VolumeReady {
		t.Fatalf("status %+v", status)
	}
	return status
}

// held are the names and uids of what the node holds.
func held(t *testing.T, s Subject) []string {
	t.Helper()
	list, err := s.Held(t.Context())
	must(t, err)
	var names []string
	for _, v := range list {
		names = append(names, v.Name+"-"+v.UID)
		if !v.Made || v.Delete {
			t.Errorf("held: %+v", v)
		}
	}
	return names
}

func expectHeld(t *testing.T, s Subject, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, held(t, s)); diff != "" {
		t.Fatalf("held: %s", diff)
	}
}

func testLife(t *testing.T, s Subject) {
	v := Volume("a", "1", "1Mi")
	expectHeld(t, s)
	if status := ensure(t, s, v); status.Capacity != 1<<20 {
		t.Errorf("capacity %d", status.Capacity)
	}
	expectHeld(t, s, "a-1")
	made, err := s.Stage(t.Context(), v, csi.Wish{})
	must(t, err)
	if made.Path == "" || made.Device != "" || made.ReadOnly {
		t.Errorf("staged %+v", made)
	}
	must(t, s.Unstage(t.Context(), v, unused))
	expectHeld(t, s, "a-1")
	must(t, s.Delete(t.Context(), v))
	expectHeld(t, s)
}

func testCopies(t *testing.T, s Subject) {
	a, b, c := Volume("a", "1", "1Mi"), Volume("b", "2", "1Mi"), Volume("c", "3", "2Mi")
	b.From, b.Snapshot, c.From = &nodes.Origin{Name: "a", UID: "1"}, true, &nodes.Origin{Name: "b", UID: "2"}
	if _, err := s.Ensure(t.Context(), b); err == nil {
		t.Error("a copy of nothing was made")
	}
	ensure(t, s, a)
	ensure(t, s, b)
	if status := ensure(t, s, c); status.Capacity != 2<<20 {
		t.Errorf("the copy has %d", status.Capacity)
	}
	// A copy is whole by itself.
	must(t, s.Delete(t.Context(), a))
	must(t, s.Delete(t.Context(), b))
	ensure(t, s, c)
	_, err := s.Stage(t.Context(), c, csi.Wish{})
	must(t, err)
	expectHeld(t, s, "c-3")
}

func testRepeated(t *testing.T, s Subject) {
	v := Volume("a", "1", "1Mi")
	var paths []string
	for range 2 {
		ensure(t, s, v)
		made, err := s.Stage(t.Context(), v, csi.Wish{})
		must(t, err)
		paths = append(paths, made.Path)
	}
	if paths[0] != paths[1] {
		t.Errorf("staged at %v", paths)
	}
	for range 2 {
		must(t, s.Sweep(t.Context(), func(string, string) bool { return false }))
		must(t, s.Unstage(t.Context(), v, unused))
	}
	for range 2 {
		must(t, s.Delete(t.Context(), v))
	}
}

func testShrink(t *testing.T, s Subject) {
	ensure(t, s, Volume("a", "1", "1Mi"))
	if status := ensure(t, s, Volume("a", "1", "4Mi")); status.Capacity != 4<<20 {
		t.Errorf("grown to %d", status.Capacity)
	}
	if status := ensure(t, s, Volume("a", "1", "2Mi")); status.Capacity != 4<<20 {
		t.Errorf("shrunk to %d", status.Capacity)
	}
}

func testMissing(t *testing.T, s Subject) {
	v := Volume("a", "1", "1Mi")
	v.Made = true
	_, err := s.Ensure(t.Context(), v)
	if why, ok := errors.AsType[*volume.Trouble](err); !ok || why.Reason != volume.ReasonMissing {
		t.Errorf("a volume that was made and is not here: %v", err)
	}
	expectHeld(t, s)
	if _, err := s.Stage(t.Context(), v, csi.Wish{}); err == nil {
		t.Error("it can be staged")
	}
}

func testStatic(t *testing.T, s Subject) {
	v := Volume("a", "1", "1Mi")
	v.Provisioner = ""
	v.Spec.HostPath = &corev1.HostPathVolumeSource{Path: t.TempDir()}
	ensure(t, s, v)
	_, err := s.Stage(t.Context(), v, csi.Wish{})
	must(t, err)
	must(t, s.Unstage(t.Context(), v, unused))
	expectHeld(t, s)
	err = s.Delete(t.Context(), v)
	if why, ok := errors.AsType[*volume.Trouble](err); !ok || why.Reason != volume.ReasonDelete {
		t.Errorf("deleted: %v", err)
	}
}

func testReset(t *testing.T, s Subject) {
	v := Volume("a", "1", "1Mi")
	ensure(t, s, v)
	_, err := s.Stage(t.Context(), v, csi.Wish{})
	must(t, err)
	must(t, s.Reset(t.Context(), false))
	expectHeld(t, s, "a-1")
	_, err = s.Stage(t.Context(), v, csi.Wish{})
	must(t, err)
	must(t, s.Reset(t.Context(), true))
	expectHeld(t, s)
}

func testUIDs(t *testing.T, s Subject) {
	ensure(t, s, Volume("a", "1", "1Mi"))
	ensure(t, s, Volume("a", "2", "1Mi"))
	must(t, s.Delete(t.Context(), Volume("a", "1", "1Mi")))
	expectHeld(t, s, "a-2")
	must(t, s.Delete(t.Context(), Volume("a", "2", "1Mi")))
}
