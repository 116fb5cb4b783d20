package csi

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// staging is the record of a volume that is attached or staged here, or is
// about to be.
type staging struct {
	Driver string `json:"driver"`
	Handle string `json:"handle"`
	// Volume and UID are those of the PersistentVolume.
	Volume string `json:"volume"`
	UID    string `json:"uid"`
	Path   string `json:"path"`
	// Attaching is set before the driver is asked to attach; Node is what it calls
	// this node, Secret what it needs to detach, Context what it answered.
	Attaching bool              `json:"attaching,omitempty"`
	Attached  bool              `json:"attached,omitempty"`
	Node      string            `json:"node,omitempty"`
	Secret    *secretRef        `json:"secret,omitempty"`
	Context   map[string]string `json:"context,omitempty"`
	// Boot in which the volume was staged.
	Boot string `json:"boot,omitempty"`
}

// publishing is the record of a volume that a pod has, or is about to have.
type publishing struct {
	Driver string `json:"driver"`
	Handle string `json:"handle"`
	// Name of the PersistentVolume, or of the pod's inline volume; UID is empty
	// for the latter.
	Name string `json:"name"`
	UID  string `json:"uid,omitempty"`
	Pod  string `json:"pod"`
	Path string `json:"path"`
	// Boot in which it was published.
	Boot string `json:"boot,omitempty"`
}

// growing is the record of a volume that its driver has made larger, and whose
// file system has yet to follow.
type growing struct {
	// Size in bytes that it will have, From that it has until then.
	Size int64 `json:"size"`
	From int64 `json:"from"`
}

// place is the record of the directory that drivers share.
type place struct {
	Dir string `json:"dir"`
	// Mounted on itself, for it was not shared.
	Mounted bool `json:"mounted,omitempty"`
}

func placePath(dataDir string) string { return filepath.Join(dataDir, "csi", "place"+recordSuffix) }

type secretRef struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
}

// errDamaged is returned when a record can't be read: nothing is concluded from it.
var errDamaged = errors.New("the record of a volume cannot be read")

// readRecord fills in a record; false when there is none.
func readRecord(path string, into any) (bool, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	if err != nil {
		return false, fmt.Errorf("%w: %s: %w", errDamaged, path, err)
	}
	return true, nil
}

// writeRecord is on the disk when it returns nil.
func writeRecord(path string, from any) error {
	text, err := json.MarshalIndent(from, "", "\t")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	fresh := path + ".new"
	f, err := os.OpenFile(fresh, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(fresh, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// removeRecord removes a record and, if it was the last, its directory.
func removeRecord(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_ = os.Remove(filepath.Dir(path))
	return nil
}

const recordSuffix = ".json"

// recordsIn are the paths of the records in a directory.
func recordsIn(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var list []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), recordSuffix) {
			list = append(list, filepath.Join(dir, e.Name()))
		}
	}
	return list, err
}
