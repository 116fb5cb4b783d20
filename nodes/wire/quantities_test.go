package wire

import (
	"bytes"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/tallyman-dev/tallyman/nodes/wire/pb"
)

// ordinary is a quantity, bomb one of the same length that takes a gigabyte.
const ordinary, bomb = "1111111111111", "1e-1000000000"

func TestNodesQuantitiesThatTakeLongAreRefused(t *testing.T) {
	_, err := decodeNode(&pb.Node{Name: "a", Capacity: map[string]string{"cpu": bomb}})
	wantRefused(t, "capacity", err)
	_, err = decodeNode(&pb.Node{Name: "a", Allocatable: map[string]string{"cpu": "1e1000000000"}})
	wantRefused(t, "allocatable", err)
}

func wantRefused(t *testing.T, what string, err error) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), "exponent") {
		t.Errorf("%s: %v", what, err)
	}
}

// TestPodsQuantitiesThatTakeLongAreRefused: a node says what it holds in the form
// that it got it.
func TestPodsQuantitiesThatTakeLongAreRefused(t *testing.T) {
	q := resource.MustParse(ordinary)
	list := corev1.ResourceList{corev1.ResourceCPU: q}
	inContainer := func(c corev1.Container) corev1.PodSpec { return corev1.PodSpec{Containers: []corev1.Container{c}} }
	inVolume := func(s corev1.VolumeSource) corev1.PodSpec {
		return corev1.PodSpec{Volumes: []corev1.Volume{{VolumeSource: s}}}
	}
	divided := &corev1.ResourceFieldSelector{Divisor: q}
	items := []corev1.DownwardAPIVolumeFile{{ResourceFieldRef: divided}}
	for name, spec := range map[string]corev1.PodSpec{
		"requests":   inContainer(corev1.Container{Resources: corev1.ResourceRequirements{Requests: list}}),
		"limits":     inContainer(corev1.Container{Resources: corev1.ResourceRequirements{Limits: list}}),
		"divisor":    inContainer(corev1.Container{Env: []corev1.EnvVar{{ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: divided}}}}),
		"init":       {InitContainers: []corev1.Container{{Resources: corev1.ResourceRequirements{Limits: list}}}},
		"pod":        {Resources: &corev1.ResourceRequirements{Limits: list}},
		"overhead":   {Overhead: list},
		"emptyDir":   inVolume(corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: &q}}),
		"downward":   inVolume(corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: items}}),
		"projected":  inVolume(corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{DownwardAPI: &corev1.DownwardAPIProjection{Items: items}}}}}),
		"ephemerals": inVolume(corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{VolumeClaimTemplate: &corev1.PersistentVolumeClaimTemplate{Spec: corev1.PersistentVolumeClaimSpec{Resources: corev1.VolumeResourceRequirements{Requests: list}}}}}),
	} {
		data, err := spec.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeTemplate(&pb.Template{Spec: data}); err != nil {
			t.Errorf("%s: an ordinary one: %v", name, err)
		}
		_, err = decodeTemplate(&pb.Template{Spec: planted(t, data)})
		wantRefused(t, name, err)
	}
	volume := corev1.PersistentVolumeSpec{Capacity: list}
	data, err := volume.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if _, err = decodeVolume(&pb.Volume{Spec: data}); err != nil {
		t.Errorf("an ordinary volume: %v", err)
	}
	_, err = decodeVolume(&pb.Volume{Spec: planted(t, data)})
	wantRefused(t, "volume", err)
}

// planted has the bomb in the place of the ordinary quantity.
func planted(t *testing.T, data []byte) []byte {
	t.Helper()
	if n := bytes.Count(data, []byte(ordinary)); n != 1 {
		t.Fatalf("the quantity is there %d times", n)
	}
	return bytes.Replace(data, []byte(ordinary), []byte(bomb), 1)
}

// TestOtherTextsMayLookLikeQuantities: only quantities are bounded.
func TestOtherTextsMayLookLikeQuantities(t *testing.T) {
	spec := corev1.PodSpec{Hostname: bomb, Containers: []corev1.Container{{
		Name: bomb, Args: []string{bomb}, Env: []corev1.EnvVar{{Name: "A", Value: bomb}},
		EnvFrom: []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: bomb}}}},
	}}}
	data, err := spec.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := decodeTemplate(&pb.Template{Spec: data}); err != nil {
		t.Error(err)
	}
}
