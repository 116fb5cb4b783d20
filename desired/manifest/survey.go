package manifest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/tallyman-dev/tallyman/desired"
)

// file is one manifest file of a tree.
type file struct {
	path string
	// id is the hash of its content, empty when the tree does not know it.
	id string
}

// survey is what lies below the followed path, before anything is read.
type survey struct {
	files []file
	// kustomizations are the directories that hold a kustomization file, with its name.
	kustomizations map[string]string
	// links are the symbolic links to directories.
	links    []string
	problems []desired.Problem
	// refused means that the tree is beyond a bound and nothing more is read.
	refused bool
}

// kustomizationNames are the file names that make a directory a kustomization.
var kustomizationNames = [...]string{"kustomization.yaml", "kustomization.yml", "Kustomization"}

func isKustomizationName(name string) bool { return slices.Contains(kustomizationNames[:], name) }

func isManifestName(name string) bool {
	switch strings.ToLower(path.Ext(name)) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

// look walks the tree below root. Hidden files and directories are skipped.
func look(ctx context.Context, tree fs.FS, root string) (*survey, error) {
	s := &survey{kustomizations: map[string]string{}}
	entries := 0
	err := fs.WalkDir(tree, root, func(p string, d fs.DirEntry, err error) error {
		entries++
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && p == root:
			return err
		case err != nil:
			s.complain(p, "unreadable", err.Error(), "")
			return nil
		case entries > maxEntries:
			s.refuse(root, fmt.Sprintf("the followed path holds more than %d files and directories", maxEntries))
			return fs.SkipAll
		case p != root && strings.HasPrefix(d.Name(), "."):
			return skip(d)
		case d.IsDir() && strings.Count(p, "/") >= maxDirDepth:
			s.complain(p, "too-large", fmt.Sprintf("directories nest deeper than %d", maxDirDepth), "")
			return fs.SkipDir
		}
		return s.visit(tree, p, d)
	})
	if err != nil {
		return nil, fmt.Errorf("read tree at %s: %w", root, err)
	}
	s.judgeLinks()
	if len(s.files) > maxFiles {
		s.refuse(root, fmt.Sprintf("the followed path holds %d manifest files, more than %d", len(s.files), maxFiles))
	}
	return s, nil
}

func skip(d fs.DirEntry) error {
	if d.IsDir() {
		return fs.SkipDir
	}
	return nil
}

// visit notes one entry of the tree.
func (s *survey) visit(tree fs.FS, p string, d fs.DirEntry) error {
	if d.IsDir() {
		return nil
	}
	if d.Name() == "Chart.yaml" {
		s.complain(p, "unsupported", "Helm charts are not rendered yet",
			"render it with helm template and commit the result, or move the chart out of the followed path")
		return fs.SkipDir
	}
	isLink := d.Type()&fs.ModeSymlink != 0
	if isLink && !s.visitLink(tree, p) || !isManifestName(d.Name()) && !isKustomizationName(d.Name()) {
		return nil
	}
	id := ""
	if c, ok := d.(ContentIdentifier); ok && !isLink {
		id = c.ContentID()
	}
	if isKustomizationName(d.Name()) {
		if _, double := s.kustomizations[path.Dir(p)]; double {
			s.complain(p, "kustomize", "the directory holds a second kustomization file", "keep one of them")
		}
		s.kustomizations[path.Dir(p)] = d.Name()
		return nil
	}
	s.files = append(s.files, file{path: p, id: id})
	return nil
}

const linkHint = "link to a file of this repository by a relative path, or remove the link"

// visitLink reports whether a symbolic link leads to a file. One that leads
// nowhere is a problem only if a manifest is expected there.
func (s *survey) visitLink(tree fs.FS, p string) bool {
	info, err := fs.Stat(tree, p)
	switch {
	case err == nil && info.IsDir():
		s.links = append(s.links, p)
	case err == nil:
		return info.Mode().IsRegular()
	case isManifestName(p) || isKustomizationName(path.Base(p)):
		s.complain(p, "unreadable", err.Error(), linkHint)
	case !errors.Is(err, fs.ErrNotExist):
		s.complain(p, "link", err.Error(), linkHint)
	}
	return false
}

// judgeLinks reports the links to directories: they are not followed, so that
// what lies there would be left out in silence. Within a kustomization only
// what it lists counts, and there a link may be listed.
func (s *survey) judgeLinks() {
	for _, p := range s.links {
		if _, owned := s.owner(p); !owned {
			s.complain(p, "link", "is a symbolic link to a directory, whose manifests would not be applied",
				"move the directory here, link to its files one by one, or let a kustomization list it")
		}
	}
}

// owner is the kustomization directory that a file lies in, at any depth.
func (s *survey) owner(p string) (string, bool) {
	if len(s.kustomizations) == 0 {
		return "", false
	}
	for dir := path.Dir(p); ; dir = path.Dir(dir) {
		if _, ok := s.kustomizations[dir]; ok {
			return dir, true
		}
		if dir == "." {
			return "", false
		}
	}
}

// plainFiles are the files that no kustomization owns or reads.
func (s *survey) plainFiles(builds []*build) []file {
	if len(s.kustomizations) == 0 {
		return s.files
	}
	read := map[string]bool{}
	for _, b := range builds {
		for p := range b.read {
			read[p] = true
		}
	}
	plain := make([]file, 0, len(s.files))
	for _, f := range s.files {
		if _, owned := s.owner(f.path); !owned && !read[f.path] {
			plain = append(plain, f)
		}
	}
	return plain
}

func (s *survey) complain(p, code, message, hint string) {
	s.problems = append(s.problems, desired.Problem{
		Severity: desired.Error, Code: code, File: p, Message: clip(message), Hint: hint,
	})
}

func (s *survey) refuse(p, message string) {
	s.complain(p, "too-large", message, "follow a smaller part of the repository with --path")
	s.refused = true
}

// readBounded reads a file of at most maxFileBytes.
func readBounded(tree fs.FS, p string) (data []byte, err error) {
	f, err := tree.Open(p)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	data, err = io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", p, err)
	}
	if len(data) > maxFileBytes {
		return nil, fmt.Errorf("the file is larger than %d MiB", maxFileBytes>>20)
	}
	return data, nil
}
