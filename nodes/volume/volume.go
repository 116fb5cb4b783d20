// Package volume makes what a pod's volumes are. Manager makes those that live
// and die with the pod: emptyDir, hostPath, configMap, secret, downwardAPI,
// projected, inline nfs and inline csi. Persistent keeps those behind claims. DESIGN.md says
// more.
//
// Guarantees: every call may be repeated, after any crash, and says success
// for what is already so. Files from ConfigMaps and Secrets change all at once
// (a link is swapped) and lie on tmpfs, so no Secret reaches a disk. A subPath
// never leads out of its volume, whatever links lie in it. Unmount leaves
// nothing of the pod behind, and touches neither a hostPath nor what somebody
// mounted into a volume: that is unmounted, or else nothing is removed.
//
// It does not decide when: package agent calls it, and tells it what the
// downward API says.
package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/csi"
)

// Options for New. All are required unless a comment says otherwise.
type Options struct {
	// DataDir holds emptyDir volumes on disk, below "volumes".
	DataDir string
	// RunDir holds everything else, below "volumes", on a tmpfs of its own.
	RunDir string
	// Drivers lead the volumes of CSI drivers; nil for none.
	Drivers *csi.Volumes
	Log     *slog.Logger
}

// Manager makes and removes the volumes of one node. Safe for concurrent use
// with different pods; calls for one pod must not overlap.
type Manager struct {
	disk, run string
	programs  programs
	drivers   *csi.Volumes // may be nil
	log       *slog.Logger
	base      base // at run
}

// Source tells what the files of a pod's volumes hold.
type Source struct {
	// Config returns a ConfigMap or Secret, nil when it is not there.
	Config func(desired.Key) *nodes.Config
	// Field and Resource resolve the items of the downward API.
	Field    func(*corev1.ObjectFieldSelector) (string, error)
	Resource func(*corev1.ResourceFieldSelector) (string, error)
	// Memory is what the pod could use at most, in bytes; 0 when that is not known.
	Memory int64
	// Token returns a valid service-account token.
	Token func(*corev1.ServiceAccountTokenProjection) (string, error)
	// DriverToken is Token with its end, for CSI drivers.
	DriverToken func(*corev1.ServiceAccountTokenProjection) (csi.Token, error)
	// Image mounts the root file system of an image volume's image on a directory.
	Image func(ctx context.Context, volume, dir string) error
	// Claim returns the staged volume behind a volume that has a claim. Its error
	// says what is waited for.
	Claim func(context.Context, *corev1.Volume) (Volume, error)
}

// Volume is one volume of a pod, ready to be mounted in its containers.
type Volume struct {
	// Path on the host. It may be a file (hostPath).
	Path string
	// Device on the host, of a volume that is a block device; Path is empty then.
	Device string
	// ReadOnly volumes are never writable, whatever the mount says.
	ReadOnly bool
	// NoExec volumes hold nothing that may be executed.
	NoExec bool

	// grouped volumes belong to the pod's fsGroup: those that hold one owner's
	// files, not what others share on the node or the network.
	grouped bool
}

// New makes a Manager and RunDir itself, nothing else.
func New(o Options) (*Manager, error) {
	if o.DataDir == "" || o.RunDir == "" || o.Log == nil {
		return nil, errors.New("volume: DataDir, RunDir and Log are required")
	}
	run, err := realDir(o.RunDir)
	if err != nil {
		return nil, err
	}
	run = filepath.Join(run, "volumes")
	return &Manager{
		disk: filepath.Join(o.DataDir, "volumes"), run: run, base: base{dir: run},
		programs: execute, drivers: o.Drivers, log: o.Log,
	}, nil
}

// realDir makes a directory and returns its real path: the kernel lists mounts
// by those.
func realDir(dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make run directory: %w", err)
	}
	path, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "", fmt.Errorf("resolve run directory: %w", err)
	}
	return path, nil
}

// Mount makes all volumes of the pod and brings the files of those that are
// made of files up to date. The result is keyed by the volume's name.
func (m *Manager) Mount(ctx context.Context, pod *nodes.Pod, src Source) (map[string]Volume, error) {
	if err := m.base.ready(); err != nil {
		return nil, err
	}
	volumes := make(map[string]Volume, len(pod.Template.Spec.Volumes))
	for i := range pod.Template.Spec.Volumes {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		v := &pod.Template.Spec.Volumes[i]
		made, err := m.mount(ctx, pod, v, src)
		if err != nil {
			return nil, fmt.Errorf("volume %q: %w", v.Name, err)
		}
		volumes[v.Name] = made
	}
	return volumes, nil
}

func (m *Manager) mount(ctx context.Context, pod *nodes.Pod, v *corev1.Volume, src Source) (Volume, error) {
	switch {
	case pod.Claim(v) != "":
		return m.claimed(ctx, pod, v, src)
	case v.CSI != nil:
		return m.inline(ctx, pod, v, src)
	case v.Image != nil:
		return m.image(ctx, pod, v, src)
	case v.NFS != nil:
		dir := m.path(pod.UID, v.Name)
		return Volume{Path: dir, ReadOnly: v.NFS.ReadOnly}, m.programs.mountNFS(ctx, dir, v.NFS, nil)
	case v.HostPath != nil:
		return Volume{Path: v.HostPath.Path}, hostPath(v.HostPath)
	case v.EmptyDir != nil:
		return m.emptyDir(pod, v.Name, v.EmptyDir, src.Memory)
	case fromFiles(v):
		dir := m.path(pod.UID, v.Name)
		files, err := payload(pod, v, src)
		if err != nil {
			return Volume{}, err
		}
		_, err = swap(dir, files, fsGroup(pod))
		return Volume{Path: dir, ReadOnly: true}, err
	}
	return Volume{}, errors.New("this kind of volume is not supported")
}

// inline is a volume that a CSI driver makes for this pod.
func (m *Manager) inline(ctx context.Context, pod *nodes.Pod, v *corev1.Volume, src Source) (Volume, error) {
	if m.drivers == nil {
		return Volume{}, fmt.Errorf("it needs the storage driver %s, and this node uses none: see its flag --kubelet-dir", v.CSI.Driver)
	}
	made, err := m.drivers.Inline(ctx, v, csi.Wish{Pod: pod, Token: src.DriverToken})
	if err != nil {
		return Volume{}, err
	}
	return m.owned(ctx, pod, v.Name, published(made))
}

// image is an image's root file system, mounted once. An image volume without a
// reference is an empty directory, as the runtimes below Kubernetes have it.
func (m *Manager) image(ctx context.Context, pod *nodes.Pod, v *corev1.Volume, src Source) (Volume, error) {
	dir := m.path(pod.UID, v.Name)
	made := Volume{Path: dir, ReadOnly: true, NoExec: true}
	if err := makeTree(dir); err != nil {
		return Volume{}, err
	}
	mounted, err := mountedOn(dir)
	if err != nil || mounted {
		return made, err
	}
	return made, src.Image(ctx, v.Name, dir)
}

// Unmount removes every volume of the pod.
func (m *Manager) Unmount(ctx context.Context, uid nodes.UID) error {
	if !validUID(uid) {
		return fmt.Errorf("unmount volumes of pod %q: not a uid", uid)
	}
	if m.drivers != nil {
		if err := m.drivers.Unpublish(ctx, uid); err != nil {
			return err
		}
	}
	if err := removeTrees(filepath.Join(m.run, string(uid)), filepath.Join(m.disk, string(uid))); err != nil {
		return fmt.Errorf("remove volumes of pod %s: %w", uid, err)
	}
	return nil
}

// List names the pods that anything is left of, sorted.
func (m *Manager) List(context.Context) ([]nodes.UID, error) {
	var uids []nodes.UID
	if m.drivers != nil {
		var err error
		if uids, err = m.drivers.Pods(); err != nil {
			return nil, fmt.Errorf("list volumes of storage drivers: %w", err)
		}
	}
	for _, dir := range []string{m.run, m.disk} {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list volumes: %w", err)
		}
		for _, e := range entries {
			uids = append(uids, nodes.UID(e.Name()))
		}
	}
	slices.Sort(uids)
	return slices.Compact(uids), nil
}

// Reset removes the volumes of all pods and the tmpfs they lie on.
func (m *Manager) Reset(ctx context.Context) error {
	if m.drivers != nil { // the drivers themselves have ended before
		if err := m.drivers.Reset(); err != nil {
			return err
		}
	}
	uids, err := m.List(ctx)
	if err != nil {
		return err
	}
	for _, uid := range uids {
		err = errors.Join(err, m.Unmount(ctx, uid))
	}
	m.base.forget()
	if err = errors.Join(err, removeTrees(m.run)); err != nil {
		return err
	}
	// Empty by now. It may be a disk that somebody mounted here: that stays.
	err = os.Remove(m.disk)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EBUSY) {
		return nil
	}
	return err
}

// Disk measures the emptyDir volumes of the pod that lie on disk, by the
// volume's name.
func (m *Manager) Disk(ctx context.Context, pod *nodes.Pod) (map[string]nodes.DiskUsage, error) {
	used := map[string]nodes.DiskUsage{}
	for i := range pod.Template.Spec.Volumes {
		v := &pod.Template.Spec.Volumes[i]
		if v.EmptyDir == nil || v.EmptyDir.Medium != corev1.StorageMediumDefault {
			continue
		}
		n, err := diskUsage(ctx, m.diskPath(pod.UID, v.Name))
		if err != nil {
			return nil, fmt.Errorf("measure volume %q: %w", v.Name, err)
		}
		used[v.Name] = n
	}
	return used, nil
}

// Dir is a directory on tmpfs for the pod's own small files (hosts,
// resolv.conf, termination messages); it goes with Unmount. Containers write
// to these files, so each pod has a tmpfs of its own for them, of dirSize: the
// Secrets of other pods never lack room because of it.
func (m *Manager) Dir(uid nodes.UID) (string, error) {
	if err := m.base.ready(); err != nil {
		return "", err
	}
	dir := m.path(uid, "@pod")
	if err := makeTree(dir); err != nil {
		return "", fmt.Errorf("make directory of pod %s: %w", uid, err)
	}
	return dir, tmpfs(dir, "mode=0755,size="+strconv.Itoa(dirSize))
}

// The names of a pod's volumes are DNS labels, so ours begin with "@".
func (m *Manager) path(uid nodes.UID, name string) string {
	return filepath.Join(m.run, string(uid), name)
}

func (m *Manager) diskPath(uid nodes.UID, name string) string {
	return filepath.Join(m.disk, string(uid), name)
}

func validUID(uid nodes.UID) bool {
	s := string(uid)
	return s != "" && s != "." && s != ".." && filepath.Base(s) == s
}

func fsGroup(pod *nodes.Pod) *int64 {
	if s := pod.Template.Spec.SecurityContext; s != nil {
		return s.FSGroup
	}
	return nil
}

func fromFiles(v *corev1.Volume) bool {
	return v.ConfigMap != nil || v.Secret != nil || v.DownwardAPI != nil || v.Projected != nil
}
