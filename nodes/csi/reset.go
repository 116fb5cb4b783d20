package csi

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Reset unmounts everything without asking the drivers, which have ended with
// all other pods. Their data stays, and volumes that they have attached stay so.
func (vs *Volumes) Reset() error {
	list, err := vs.published(func(*publishing) bool { return true })
	for _, p := range list {
		err = errors.Join(err, unmount(p.Path))
		if err == nil {
			err = vs.forgetPublishing(p)
		}
	}
	paths, listed := recordsIn(filepath.Join(vs.records, "staged"))
	err = errors.Join(err, listed)
	for _, path := range paths {
		s := &staging{}
		if _, failed := readRecord(path, s); failed != nil {
			err = errors.Join(err, failed)
			continue
		}
		if s.Path != "" {
			err = errors.Join(err, unmount(s.Path), remove(s.Path))
			_ = os.Remove(filepath.Dir(s.Path))
			_ = os.Remove(filepath.Dir(filepath.Dir(s.Path)))
		}
		if err == nil {
			err = removeRecord(path)
		}
	}
	return errors.Join(err, vs.unshare())
}

// unshare undoes what Drivers.Run made of the directory, as far as nobody else
// has anything in it.
func (vs *Volumes) unshare() error {
	at := place{}
	found, err := readRecord(placePath(vs.o.DataDir), &at)
	if err != nil || !found {
		return err
	}
	for _, name := range []string{
		"plugins/kubernetes.io/csi/volumeDevices/staging", "plugins/kubernetes.io/csi/volumeDevices/publish", "plugins/kubernetes.io/csi/volumeDevices",
		"plugins/kubernetes.io/csi", "plugins/kubernetes.io", "plugins", registry, "pods",
	} {
		_ = os.Remove(filepath.Join(at.Dir, name)) // only what is empty goes
	}
	if at.Mounted {
		if err := unmount(at.Dir); err != nil {
			return err
		}
	}
	_ = os.Remove(at.Dir)
	return removeRecord(placePath(vs.o.DataDir))
}

// unmount takes away all that is mounted on a path.
func unmount(path string) error {
	for {
		mounted, err := mountedOn(path)
		if err != nil || !mounted {
			return err
		}
		if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}
