package manifest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"

	"sigs.k8s.io/kustomize/api/types"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// view shows a tree to kustomize, read-only, with the tree's root at "/", and
// notes what was looked at. For one goroutine.
type view struct {
	ctx  context.Context
	tree fs.FS
	seen map[string]observation
	// reads and bytes count what was read; reads is bounded.
	reads, bytes int
	// tagged is a kustomization file that is shown with the option set that
	// makes kustomize say where each object comes from.
	tagged string
}

// observation is what a view saw at a path: a file with this content, a
// directory, or nothing.
type observation struct {
	path string
	file bool
	dir  bool
	id   string
}

var errReadOnly = errors.New("the tree is read-only")

func newView(ctx context.Context, tree fs.FS) *view {
	return &view{ctx: ctx, tree: tree, seen: map[string]observation{}}
}

// inTree turns a path of kustomize's into one of the tree.
func inTree(p string) string {
	p = path.Clean("/" + filepath.ToSlash(p))[1:]
	if p == "" {
		return "."
	}
	return p
}

// look notes what is at a path.
func (v *view) look(p string) observation {
	p = inTree(p)
	if o, ok := v.seen[p]; ok {
		return o
	}
	o := observe(v.tree, p)
	v.seen[p] = o
	return o
}

func observe(tree fs.FS, p string) observation {
	o := observation{path: p}
	info, err := fs.Stat(tree, p)
	switch {
	case err != nil:
	case info.IsDir():
		o.dir = true
	default:
		o.file = true
		if c, ok := info.(ContentIdentifier); ok {
			o.id = c.ContentID()
		} else if data, err := readBounded(tree, p); err == nil {
			o.id = contentHash(data)
		}
	}
	return o
}

func (v *view) observations() []observation {
	out := make([]observation, 0, len(v.seen))
	for _, p := range sortedKeys(v.seen) {
		out = append(out, v.seen[p])
	}
	return out
}

// stillSees reports whether a tree shows what was observed.
func stillSees(tree fs.FS, observed []observation) bool {
	for _, o := range observed {
		if observe(tree, o.path) != o {
			return false
		}
	}
	return true
}

// kustomizationFile finds the kustomization file of a directory.
func (v *view) kustomizationFile(dir string) (string, bool) {
	for _, name := range kustomizationNames {
		if p := path.Join(dir, name); v.look(p).file {
			return p, true
		}
	}
	return "", false
}

// kustomization reads the kustomization file of a directory, as far as it is understood here.
func (v *view) kustomization(dir string) (*kustomization, error) {
	file, ok := v.kustomizationFile(dir)
	if !ok {
		return nil, fs.ErrNotExist
	}
	data, err := v.ReadFile("/" + file)
	if err != nil {
		return nil, err
	}
	k := &kustomization{text: newText(data)}
	if why := swollen(data); why != "" {
		return nil, errors.New(why)
	}
	if err := yaml.Unmarshal(data, k); err != nil {
		return nil, fmt.Errorf("read kustomization: %w", err)
	}
	if err := yaml.Unmarshal(data, &k.everything); err != nil {
		return nil, fmt.Errorf("read kustomization: %w", err)
	}
	return k, nil
}

// ReadFile implements filesys.FileSystem.
func (v *view) ReadFile(p string) ([]byte, error) {
	if err := v.ctx.Err(); err != nil {
		return nil, err
	}
	if v.reads++; v.reads > maxBuildReads {
		return nil, fmt.Errorf("the kustomization reads more than %d files", maxBuildReads)
	}
	if o := v.look(p); !o.file {
		return nil, &fs.PathError{Op: "open", Path: inTree(p), Err: fs.ErrNotExist}
	}
	data, err := readBounded(v.tree, inTree(p))
	if err != nil {
		return nil, err
	}
	if v.bytes += len(data); v.bytes > maxTotalBytes {
		return nil, fmt.Errorf("the kustomization reads more than %d MiB", maxTotalBytes>>20)
	}
	if at, what := foulText(data); what != "" && isManifestName(p) {
		return nil, fmt.Errorf("%s: %s at byte %d", inTree(p), what, at)
	}
	if bytes.IndexByte(data, '&') >= 0 && bytes.IndexByte(data, '*') >= 0 {
		if why := swollenFile(data); why != "" {
			return nil, fmt.Errorf("%s: %s", inTree(p), why)
		}
	}
	if inTree(p) == v.tagged {
		data = withOrigins(data)
	}
	return data, nil
}

// swollenFile looks at every document of a file.
func swollenFile(data []byte) string {
	for _, d := range split(data) {
		if why := swollen(d.text); why != "" {
			return why
		}
	}
	return ""
}

// withOrigins sets kustomize's option originAnnotations in a kustomization.
func withOrigins(data []byte) []byte {
	var k map[string]any
	if yaml.Unmarshal(data, &k) != nil || k == nil {
		return data
	}
	options, _ := k["buildMetadata"].([]any)
	k["buildMetadata"] = append(options, types.OriginAnnotations)
	if tagged, err := yaml.Marshal(k); err == nil {
		return tagged
	}
	return data
}

// Exists implements filesys.FileSystem.
func (v *view) Exists(p string) bool { o := v.look(p); return o.file || o.dir }

// IsDir implements filesys.FileSystem.
func (v *view) IsDir(p string) bool { return v.look(p).dir }

// CleanedAbs implements filesys.FileSystem.
func (v *view) CleanedAbs(p string) (filesys.ConfirmedDir, string, error) {
	clean := path.Clean("/" + filepath.ToSlash(p))
	switch o := v.look(p); {
	case o.dir:
		return filesys.ConfirmedDir(clean), "", nil
	case o.file:
		return filesys.ConfirmedDir(path.Dir(clean)), path.Base(clean), nil
	}
	return "", "", &fs.PathError{Op: "open", Path: inTree(p), Err: fs.ErrNotExist}
}

// ReadDir and the rest of filesys.FileSystem are never used by a build.
func (v *view) ReadDir(string) ([]string, error)     { return nil, errReadOnly }
func (v *view) Glob(string) ([]string, error)        { return nil, errReadOnly }
func (v *view) Walk(string, filepath.WalkFunc) error { return errReadOnly }
func (v *view) Open(string) (filesys.File, error)    { return nil, errReadOnly }
func (v *view) Create(string) (filesys.File, error)  { return nil, errReadOnly }
func (v *view) Mkdir(string) error                   { return errReadOnly }
func (v *view) MkdirAll(string) error                { return errReadOnly }
func (v *view) RemoveAll(string) error               { return errReadOnly }
func (v *view) WriteFile(string, []byte) error       { return errReadOnly }
