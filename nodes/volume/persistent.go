package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/locker"
	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/csi"
)

// PersistentOptions for NewPersistent. All are required unless a comment says
// otherwise.
type PersistentOptions struct {
	// DataDir holds the data of provisioned volumes, below "persistent". Nothing
	// but a volume's own Delete, or Reset when told to, removes anything there.
	DataDir string
	// RunDir holds mount points, below "staged".
	RunDir string
	// Node is the name of this node.
	Node string
	// Drivers lead the volumes of CSI drivers; nil for none.
	Drivers *csi.Volumes
	Log     *slog.Logger
}

// Persistent keeps what outlives pods: the volumes behind PersistentVolumes. It
// provisions those of nodes.LocalProvisioner and of CSI drivers, and mounts
// those that Git describes (local, hostPath, NFS, CSI). Safe for concurrent use; calls for one
// volume wait for each other.
type Persistent struct {
	node   string
	dir    string
	staged base
	run    programs
	// drivers may be nil.
	drivers *csi.Volumes
	log     *slog.Logger
	locks   locker.Locker
}

// NewPersistent makes RunDir itself, nothing else.
func NewPersistent(o PersistentOptions) (*Persistent, error) {
	if o.DataDir == "" || o.RunDir == "" || o.Node == "" || o.Log == nil {
		return nil, errors.New("volume: DataDir, RunDir, Node and Log are required")
	}
	run, err := realDir(o.RunDir)
	if err != nil {
		return nil, err
	}
	return &Persistent{
		node: o.Node, dir: filepath.Join(o.DataDir, "persistent"), staged: base{dir: filepath.Join(run, "staged")},
		run: execute, drivers: o.Drivers, log: o.Log,
	}, nil
}

// Trouble is why a volume can't be had: a word and one sentence.
type Trouble struct {
	Reason string
	Err    error
}

func (t *Trouble) Error() string { return t.Err.Error() }
func (t *Trouble) Unwrap() error { return t.Err }

// Reasons of a Trouble.
const (
	ReasonProvisioning = "ProvisioningFailed"
	ReasonMissing      = "VolumeMissing"
	ReasonMount        = "FailedMount"
	ReasonResize       = "VolumeResizeFailed"
	ReasonDelete       = "VolumeFailedDelete"
	ReasonDetach       = "FailedDetachVolume"
)

func trouble(reason, format string, args ...any) error {
	return &Trouble{reason, fmt.Errorf(format, args...)}
}

// Ensure makes the volume, or finds it, and makes it as large as it is to be.
// It returns how the volume is; the status is ready when the error is nil, or
// pending while its driver is away.
func (p *Persistent) Ensure(ctx context.Context, v *nodes.Volume) (nodes.VolumeStatus, error) {
	status := nodes.VolumeStatus{Name: v.Name, UID: v.UID, Phase: nodes.VolumeReady}
	if err := checkName(v); err != nil {
		return status, err
	}
	lock := home(v)
	p.locks.Lock(lock)
	defer p.locks.Unlock(lock)
	if v.Provisioner == nodes.LocalProvisioner {
		return status, p.ensureLocal(ctx, v, &status)
	}
	if byDriver(v) {
		err := p.ensureDriver(ctx, v, &status)
		return status, err
	}
	if size := v.Spec.Capacity.Storage(); size != nil {
		status.Capacity = size.Value() // as its maker says
	}
	return status, checkStatic(v)
}

// Stage makes the volume mountable by a pod and returns it. It must have been
// ensured.
func (p *Persistent) Stage(ctx context.Context, v *nodes.Volume, w csi.Wish) (Volume, error) {
	if err := checkName(v); err != nil {
		return Volume{}, err
	}
	lock := home(v)
	p.locks.Lock(lock)
	defer p.locks.Unlock(lock)
	if byDriver(v) {
		return p.publish(ctx, v, w)
	}
	if err := p.staged.ready(); err != nil {
		return Volume{}, err
	}
	s := &v.Spec
	switch {
	case v.Provisioner == nodes.LocalProvisioner:
		return p.stageLocal(ctx, v)
	case s.HostPath != nil:
		return p.stageHostPath(ctx, v)
	case s.Local != nil:
		return p.stageStaticLocal(ctx, v)
	case s.NFS != nil:
		return p.stageNFS(ctx, v)
	}
	return Volume{}, unsupportedSource(v)
}

// Unstage undoes Stage: nothing stays mounted, no device attached. unused is
// asked under the volume's lock whether that is still wanted.
func (p *Persistent) Unstage(ctx context.Context, v *nodes.Volume, unused func() bool) error {
	if err := checkName(v); err != nil {
		return err
	}
	lock := home(v)
	p.locks.Lock(lock)
	defer p.locks.Unlock(lock)
	if !unused() {
		return nil
	}
	return p.unstage(ctx, v)
}

func (p *Persistent) unstage(ctx context.Context, v *nodes.Volume) error {
	if byDriver(v) {
		return p.withdraw(ctx, v)
	}
	if err := removePoint(p.point(v)); err != nil {
		return trouble(ReasonMount, "unmount volume %s: %w", v.Name, err)
	}
	if image := filepath.Join(p.home(v), imageFile); exists(image) {
		return p.detach(ctx, image)
	}
	return nil
}

// Detach takes a volume of a CSI driver from another node, on which nothing uses
// it any more and which cannot do so itself; id is what the driver calls it.
func (p *Persistent) Detach(ctx context.Context, v *nodes.Volume, from, id string) error {
	if err := checkName(v); err != nil {
		return err
	}
	lock := home(v)
	p.locks.Lock(lock)
	defer p.locks.Unlock(lock)
	switch {
	case v.Spec.CSI == nil:
		return trouble(ReasonDetach, "detach volume %s from node %s: nobody knows its handle", v.Name, from)
	case p.drivers == nil:
		return trouble(ReasonDriver, "volume %s needs a storage driver, and this node uses none: see its flag --kubelet-dir", v.Name)
	}
	if err := p.drivers.DetachFrom(ctx, v, id); err != nil {
		return trouble(ReasonDetach, "detach volume %s from node %s, which its driver calls %s: %w", v.Name, from, id, err)
	}
	return nil
}

// Delete ends the volume's data for good. When it returns nil, nothing is left.
// A volume that Tallyman did not make keeps its data, and that is an error.
func (p *Persistent) Delete(ctx context.Context, v *nodes.Volume) error {
	if err := checkName(v); err != nil {
		return err
	}
	if v.Provisioner == "" {
		return trouble(ReasonDelete, "volume %s was made by somebody else: its data is not ours to delete; "+
			"set persistentVolumeReclaimPolicy to Retain, or remove the data and the manifest by hand", v.Name)
	}
	lock := home(v)
	p.locks.Lock(lock)
	defer p.locks.Unlock(lock)
	if byDriver(v) {
		if err := p.deleteDriver(ctx, v); err != nil {
			return trouble(ReasonDelete, "delete volume %s: %w", v.Name, err)
		}
	} else if err := p.unstage(ctx, v); err != nil {
		return err
	}
	if err := p.discard(v); err != nil {
		return trouble(ReasonDelete, "delete volume %s: %w", v.Name, err)
	}
	return nil
}

// Held are the volumes whose data lies here, as their metadata says, sorted by
// the names of their directories. A directory whose metadata can't be read is
// left out and said.
func (p *Persistent) Held(context.Context) ([]*nodes.Volume, error) {
	entries, err := os.ReadDir(p.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list persistent volumes: %w", err)
	}
	var list []*nodes.Volume
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), trashPrefix) {
			continue
		}
		v, err := readRecord(filepath.Join(p.dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // a crash came before anything was made
		}
		if err != nil {
			p.log.Error("persistent volume is held, but nobody can tell which: repair or remove its metadata", "dir", filepath.Join(p.dir, e.Name()), "err", err)
			continue
		}
		list = append(list, v)
	}
	return list, nil
}

// Sweep finishes removals that were cut short, and unmounts volumes that are not
// assigned: whoever staged them may have died before it could.
func (p *Persistent) Sweep(ctx context.Context, assigned func(name, uid string) bool) error {
	err := p.sweepTrash()
	held, listed := p.Held(ctx)
	err = errors.Join(err, listed)
	known := map[string]bool{}
	for _, v := range held {
		known[home(v)] = true
		err = errors.Join(err, p.Unstage(ctx, v, func() bool { return !assigned(v.Name, v.UID) }))
	}
	points, listed := os.ReadDir(p.staged.dir)
	if listed != nil && !errors.Is(listed, fs.ErrNotExist) {
		err = errors.Join(err, fmt.Errorf("list staged volumes: %w", listed))
	}
	for _, e := range points {
		if !known[e.Name()] {
			err = errors.Join(err, p.sweepPoint(e.Name(), assigned))
		}
	}
	if p.drivers != nil {
		err = errors.Join(err, p.drivers.Sweep(ctx, assigned))
	}
	return err
}

// sweepPoint unmounts a volume of which nothing but the mount point is here.
func (p *Persistent) sweepPoint(home string, assigned func(name, uid string) bool) error {
	p.locks.Lock(home)
	defer p.locks.Unlock(home)
	for i := range home { // where the name ends cannot be seen
		if home[i] == '-' && assigned(home[:i], home[i+1:]) {
			return nil
		}
	}
	return removePoint(filepath.Join(p.staged.dir, home))
}

// Reset unmounts everything. Data stays unless remove is set.
func (p *Persistent) Reset(ctx context.Context, remove bool) error {
	held, err := p.Held(ctx)
	if err != nil {
		return err
	}
	err = removeTrees(p.staged.dir)
	if p.drivers != nil {
		err = errors.Join(err, p.drivers.Reset())
	}
	for _, v := range held {
		if !byDriver(v) {
			err = errors.Join(err, p.unstage(ctx, v))
		} else if remove {
			p.log.Warn("the data of a volume stays: its driver has ended", "volume", v.Name, "driver", v.Provisioner, "handle", handleOf(v))
		}
	}
	p.staged.forget()
	if err != nil || !remove {
		return err
	}
	return removeTrees(p.dir)
}

// handleOf is what a driver calls a volume; empty when nobody knows.
func handleOf(v *nodes.Volume) string {
	if v.Spec.CSI == nil {
		return ""
	}
	return v.Spec.CSI.VolumeHandle
}

// home is the name of the volume's own directory.
func home(v *nodes.Volume) string { return v.Name + "-" + v.UID }

func (p *Persistent) home(v *nodes.Volume) string { return filepath.Join(p.dir, home(v)) }

// point is where the volume is mounted, if it has to be.
func (p *Persistent) point(v *nodes.Volume) string { return filepath.Join(p.staged.dir, home(v)) }

func checkName(v *nodes.Volume) error {
	for _, s := range []string{v.Name, v.UID} {
		if s == "" || strings.HasPrefix(s, ".") || strings.ContainsAny(s, "/\x00") {
			return trouble(ReasonProvisioning, "%q is no name or uid of a volume", s)
		}
	}
	return nil
}

func isBlock(v *nodes.Volume) bool {
	return v.Spec.VolumeMode != nil && *v.Spec.VolumeMode == corev1.PersistentVolumeBlock
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
