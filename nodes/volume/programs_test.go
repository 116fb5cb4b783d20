package volume

import (
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
)

// recorder stands for the node's programs; it answers as told.
type recorder struct {
	calls []string
	err   error
}

func (r *recorder) run(_ context.Context, name string, args ...string) (string, error) {
	r.calls = append(r.calls, name+" "+strings.Join(args, " "))
	return "", r.err
}

func TestNFSMountCall(t *testing.T) {
	point := filepath.Join(t.TempDir(), "point")
	for _, c := range []struct {
		name    string
		source  corev1.NFSVolumeSource
		options []string
		want    string
	}{
		{"plain", corev1.NFSVolumeSource{Server: "nas", Path: "/export"}, nil, "mount -t nfs nas:/export " + point},
		{"options", corev1.NFSVolumeSource{Server: "nas", Path: "/"}, []string{"nfsvers=4.1", "hard"}, "mount -t nfs -o nfsvers=4.1,hard nas:/ " + point},
		{"read only", corev1.NFSVolumeSource{Server: "10.0.0.1", Path: "/e", ReadOnly: true}, []string{"soft"}, "mount -t nfs -o soft,ro 10.0.0.1:/e " + point},
		{"IPv6", corev1.NFSVolumeSource{Server: "fd00::1", Path: "/e"}, nil, "mount -t nfs [fd00::1]:/e " + point},
	} {
		var r recorder
		options := c.options
		if err := programs(r.run).mountNFS(t.Context(), point, &c.source, options); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if diff := cmp.Diff([]string{c.want}, r.calls); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
}

func TestMissingNFSProgramNamesItsPackage(t *testing.T) {
	r := recorder{err: errors.New("bad option; need a helper program")}
	err := programs(r.run).mountNFS(t.Context(), filepath.Join(t.TempDir(), "p"), &corev1.NFSVolumeSource{Server: "nas", Path: "/"}, nil)
	if _, found := findProgram("mount.nfs"); found != nil && (err == nil || !strings.Contains(err.Error(), "install the package nfs-common")) {
		t.Errorf("%v", err)
	}
	if err == nil {
		t.Error("a mount that failed passes")
	}
}

func TestProgramsSayWhatTheySaid(t *testing.T) {
	_, err := execute(t.Context(), "sh", "-c", "echo out; echo wrong >&2; exit 3")
	if err == nil || err.Error() != "sh: wrong out" || exitCode(err) != 3 {
		t.Errorf("%v", err)
	}
	_, err = execute(t.Context(), "no-such-program")
	if err == nil || !strings.Contains(err.Error(), "not on this node") || exitCode(err) != -1 || errors.Is(err, exec.ErrNotFound) {
		t.Errorf("%v", err)
	}
	if out, err := execute(t.Context(), "echo", "a", "b"); err != nil || out != "a b\n" {
		t.Errorf("%q, %v", out, err)
	}
}
