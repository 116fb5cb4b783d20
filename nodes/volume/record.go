package volume

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/tallyman-dev/tallyman/nodes"
)

// Names within a volume's own directory.
const (
	// recordFile holds the nodes.Volume as JSON. It is there before the data, and
	// its Made tells that the data was whole.
	recordFile = "volume.json"
	// dataDir is the volume when it is a directory.
	dataDir = "data"
	// imageFile is the volume when it is a file system, or a block device, in a file.
	imageFile = "image"
	// unfinished follows the name of what is not whole yet.
	unfinished = ".new"
)

// trashPrefix begins the name of a directory that is on its way out.
const trashPrefix = "@trash-"

func readRecord(dir string) (*nodes.Volume, error) {
	text, err := os.ReadFile(filepath.Join(dir, recordFile))
	if err != nil {
		return nil, err
	}
	v := &nodes.Volume{}
	if err := json.Unmarshal(text, v); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, recordFile), err)
	}
	if home(v) != filepath.Base(dir) {
		return nil, fmt.Errorf("%s tells of volume %s, whose directory is another", filepath.Join(dir, recordFile), home(v))
	}
	return v, nil
}

// writeRecord is on the disk when it returns nil.
func writeRecord(dir string, v *nodes.Volume) error {
	text, err := json.MarshalIndent(v, "", "\t")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, recordFile)
	if err := writeSynced(path+unfinished, text); err != nil {
		return err
	}
	return renameSynced(path+unfinished, path)
}

func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// renameSynced gives a file or directory its name for good.
func renameSynced(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return syncDir(filepath.Dir(to))
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// keep writes the record of a volume whose data is whole, unless it is there.
func (p *Persistent) keep(v, kept *nodes.Volume) error {
	made := *v
	made.Made, made.Delete = true, false
	return p.rewrite(&made, kept)
}

// rewrite writes a record that is not what is kept.
func (p *Persistent) rewrite(v, kept *nodes.Volume) error {
	if reflect.DeepEqual(kept, v) {
		return nil
	}
	return writeRecord(p.home(v), v)
}

// begin writes the record of a volume that has no data yet.
func (p *Persistent) begin(v *nodes.Volume) (*nodes.Volume, error) {
	if err := os.MkdirAll(p.home(v), 0o700); err != nil {
		return nil, err
	}
	first := *v
	first.Made = false
	if err := writeRecord(p.home(v), &first); err != nil {
		return nil, err
	}
	return &first, syncDir(p.dir)
}

// discard removes all of a volume, under a name first that nobody takes for a
// volume: a crash leaves the volume whole, or trash.
func (p *Persistent) discard(v *nodes.Volume) error {
	trash := filepath.Join(p.dir, trashPrefix+home(v))
	if err := removeTrees(trash); err != nil { // of a removal that was cut short
		return err
	}
	err := renameSynced(p.home(v), trash)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return removeTrees(trash)
}

// sweepTrash finishes removals that were cut short.
func (p *Persistent) sweepTrash() error {
	entries, err := os.ReadDir(p.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list persistent volumes: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), trashPrefix) {
			err = errors.Join(err, removeTrees(filepath.Join(p.dir, e.Name())))
		}
	}
	return err
}
