package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
)

// driver is all three services of a CSI driver.
type driver struct {
	name, node, dir string
	attaches        bool
	// shared drivers have the same data on all nodes.
	shared bool
	// mu is held during each call.
	mu sync.Mutex
	unimplemented
}

// volume is the record of a volume or a snapshot, beside its data.
type volume struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	Size int64  `json:"size"`
	// NodeSize is the size that the node was last told.
	NodeSize int64 `json:"node_size"`
	// Source of a snapshot; From of a volume with content.
	Source string `json:"source,omitempty"`
	From   string `json:"from,omitempty"`
	// Attached to the node; ReadOnly how.
	Attached string `json:"attached,omitempty"`
	ReadOnly bool   `json:"read_only,omitempty"`
	// History is what became of its attachments.
	History []string `json:"history,omitempty"`
	// Inline volumes end when they are unpublished.
	Inline bool `json:"inline,omitempty"`
	// Created in seconds since 1970.
	Created int64 `json:"created,omitempty"`
}

const (
	volumes   = "volumes"
	snapshots = "snapshots"
)

// idOf makes the handle of what has a name.
func idOf(kind, name string) string {
	sum := sha256.Sum256([]byte(kind + name))
	return kind[:1] + "-" + hex.EncodeToString(sum[:8])
}

func (d *driver) home(kind, id string) string { return filepath.Join(d.dir, kind, id) }
func (d *driver) data(kind, id string) string { return filepath.Join(d.home(kind, id), "data") }

// get is nil when there is none.
func (d *driver) get(kind, id string) (*volume, error) {
	if id == "" || filepath.Base(id) != id {
		return nil, nil
	}
	text, err := os.ReadFile(filepath.Join(d.home(kind, id), "record.json"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrInvalid) {
		return nil, nil
	}
	if err != nil {
		return nil, nil // a name that no file can have
	}
	v := &volume{}
	return v, json.Unmarshal(text, v)
}

// put makes a record whole or not at all.
func (d *driver) put(kind string, v *volume) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(d.home(kind, v.ID), 0o750); err != nil {
		return err
	}
	path := filepath.Join(d.home(kind, v.ID), "record.json")
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// begin makes the data of a volume or a snapshot: a copy, or empty.
func (d *driver) begin(kind, id, from string) error {
	data := d.data(kind, id)
	if err := os.RemoveAll(data); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(data), 0o750); err != nil {
		return err
	}
	if from == "" {
		if err := os.Mkdir(data, 0o777); err != nil {
			return err
		}
	} else if err := os.CopyFS(data, os.DirFS(from)); err != nil {
		return err
	}
	return os.Chmod(data, 0o777)
}
