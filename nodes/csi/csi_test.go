package csi_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/csi"
	"github.com/tallyman-dev/tallyman/nodes/csi/fake"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// follow watches a directory, and tells of every change.
func follow(t *testing.T) (drivers *csi.Drivers, dir string, changed <-chan struct{}) {
	dir, err := os.MkdirTemp("", "csi") // short: a socket's path has 107 bytes at most
	must(t, err)
	changes, followed := make(chan struct{}, 64), make(chan error, 1)
	drivers, err = csi.New(csi.Options{Dir: dir, DataDir: dir, Changed: func() { changes <- struct{}{} }, Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { followed <- drivers.Follow(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-followed
		must(t, os.RemoveAll(dir))
	})
	return drivers, dir, changes
}

func await(t *testing.T, changed <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-changed:
	case <-time.After(time.Minute):
		t.Fatal("in vain waited that " + what)
	}
}

func TestDriversComeAndGo(t *testing.T) {
	drivers, dir, changed := follow(t)
	if _, err := drivers.Named(fake.Name); !errors.Is(err, csi.ErrAway) {
		t.Errorf("before it registers, the driver is had with %v", err)
	}
	for range 2 { // the second run has the sockets' names of the first
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- (&fake.Driver{}).Serve(ctx, dir) }()
		await(t, changed, "the driver registers")
		want := []nodes.DriverNode{{Name: fake.Name, ID: "here", Controller: true, MaxVolumes: 3}}
		if got := drivers.Nodes(); !slices.Equal(got, want) || drivers.Topology()[fake.Name+"/node"] != "here" {
			t.Errorf("the drivers are %v, %v", got, drivers.Topology())
		}
		cancel()
		must(t, <-served)
		await(t, changed, "the driver is missed")
		if got := drivers.Nodes(); len(got) != 0 {
			t.Errorf("without their sockets the drivers are %v", got)
		}
	}
}

func TestSnapshots(t *testing.T) {
	drivers, dir, changed := follow(t)
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- (&fake.Driver{}).Serve(ctx, dir) }()
	defer func() { cancel(); must(t, <-served) }()
	await(t, changed, "the driver registers")
	d, err := drivers.Named(fake.Name)
	must(t, err)
	if !d.CanSnapshot() || !d.CanClone() {
		t.Errorf("the driver can snapshot %t and clone %t", d.CanSnapshot(), d.CanClone())
	}
	_, err = d.CreateSnapshot(ctx, "s", "nothing", nil, nil)
	if csi.Code(err) != codes.NotFound {
		t.Errorf("a snapshot of nothing: %v", err)
	}
	of, err := d.CreateVolume(ctx, csi.NewVolume{Name: "a", Size: 1 << 20})
	must(t, err)
	s, err := d.CreateSnapshot(ctx, "s", of.Handle, nil, nil)
	must(t, err)
	if s.Handle != "snapshot-s" || s.Source != of.Handle || s.Size != 1<<20 || !s.Ready || s.Created.Unix() != 1 {
		t.Errorf("the snapshot is %+v", s)
	}
	from := csi.Content{Snapshot: s.Handle}
	if _, err = d.CreateVolume(ctx, csi.NewVolume{Name: "b", Size: 1 << 20, Content: from}); err != nil {
		t.Error(err)
	}
	must(t, d.DeleteSnapshot(ctx, s.Handle, nil))
	if _, err = d.CreateVolume(ctx, csi.NewVolume{Name: "c", Size: 1 << 20, Content: from}); csi.Code(err) != codes.NotFound {
		t.Errorf("a volume of a snapshot that is gone: %v", err)
	}
}

func TestParametersForDriver(t *testing.T) {
	got := csi.ForDriver(map[string]string{"color": "blue", "csi.storage.k8s.io/fstype": "xfs"})
	if len(got) != 1 || got["color"] != "blue" {
		t.Errorf("the driver gets %v", got)
	}
}
