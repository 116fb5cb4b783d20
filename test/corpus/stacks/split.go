package stacks

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// split lists the files of a directory in revisions, by their paths below base:
// the directory itself, or one above it where its kustomization reaches out of
// it. Folders within belong to it only where a kustomization may name them;
// otherwise they are stacks of their own.
func split(dir string) (base string, revisions [][]string, err error) {
	if kustomization(dir) != "" {
		base, files, err := reached(dir)
		return base, [][]string{files}, err
	}
	var files []string
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case !d.IsDir():
			files = append(files, filepath.Base(path))
		case path != dir:
			return fs.SkipDir
		}
		return nil
	})
	if err != nil {
		return dir, nil, err
	}
	revisions, err = layers(dir, files)
	return dir, revisions, err
}

// kustomization is the file of that name in a directory; empty for none.
func kustomization(dir string) string {
	for _, name := range []string{"kustomization.yaml", "kustomization.yml", "Kustomization"} {
		file := filepath.Join(dir, name)
		if _, err := os.Stat(file); err == nil {
			return file
		}
	}
	return ""
}

// reached lists everything below a directory and in those that kustomizations in
// there name elsewhere, by paths below the innermost directory that holds them
// all. Elsewhere, folders with kustomizations of their own belong to it only if
// they are named.
func reached(dir string) (base string, files []string, err error) {
	base = dir
	found, walked, todo := map[string]bool{}, map[string]bool{}, []string{dir}
	for len(todo) > 0 {
		next := todo[0]
		todo = todo[1:]
		for !within(base, next) {
			base = filepath.Dir(base)
		}
		err := filepath.WalkDir(next, func(path string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case !d.IsDir():
				found[path] = true
				return nil
			case walked[path], next != dir && path != next && kustomization(path) != "":
				return fs.SkipDir
			}
			walked[path] = true
			n, err := named(path)
			todo = append(todo, n...)
			return err
		})
		if err != nil {
			return base, nil, err
		}
	}
	for path := range found {
		inside, err := filepath.Rel(base, path)
		if err != nil {
			return base, nil, err
		}
		files = append(files, inside)
	}
	slices.Sort(files)
	return base, files, nil
}

// named lists what the kustomization of a directory names that is there.
func named(dir string) ([]string, error) {
	file := kustomization(dir)
	if file == "" {
		return nil, nil
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var k struct{ Resources, Bases, Components []string }
	_ = yaml.Unmarshal(content, &k) // whether it can be read is not for us to judge
	var there []string
	for _, n := range slices.Concat(k.Resources, k.Bases, k.Components) {
		path := filepath.Join(dir, n)
		if _, err := os.Stat(path); err == nil {
			there = append(there, path)
		}
	}
	return there, nil
}

// within reports whether a path is a directory or below it.
func within(dir, path string) bool {
	inside, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(inside)
}

// layers begins a new revision with each file that writes an object of the
// revision so far once more; what wrote it before goes.
func layers(dir string, files []string) ([][]string, error) {
	var revisions [][]string
	current := map[string]map[string]bool{}
	for _, file := range files {
		content, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			return nil, err
		}
		own := objects(content)
		var replaced []string
		for _, before := range slices.Sorted(maps.Keys(current)) {
			if overlap(current[before], own) {
				replaced = append(replaced, before)
			}
		}
		if len(replaced) > 0 {
			revisions = append(revisions, slices.Sorted(maps.Keys(current)))
			for _, r := range replaced {
				delete(current, r)
			}
		}
		current[file] = own
	}
	return append(revisions, slices.Sorted(maps.Keys(current))), nil
}

func overlap(a, b map[string]bool) bool {
	for k := range a {
		if b[k] {
			return true
		}
	}
	return false
}

// objects names what a file writes, as far as it can be read: whether it can
// is not for us to judge.
func objects(content []byte) map[string]bool {
	found := map[string]bool{}
	documents := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(content), 4096)
	for {
		var head struct {
			metav1.TypeMeta   `json:",inline"`
			metav1.ObjectMeta `json:"metadata"`
		}
		err := documents.Decode(&head)
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			return found
		}
		if head.Name != "" {
			group := head.GroupVersionKind().Group
			namespace := head.Namespace
			if namespace == "default" {
				namespace = ""
			}
			found[group+"/"+head.Kind+"/"+namespace+"/"+head.Name] = true
		}
	}
}
