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

// split lists the files of a directory in revisions. Folders within belong to
// it only where a kustomization may name them; otherwise they are stacks of
// their own.
func split(dir string) ([][]string, error) {
	whole := false
	for _, name := range []string{"kustomization.yaml", "kustomization.yml", "Kustomization"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			whole = true
		}
	}
	var files []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		inside, err := filepath.Rel(dir, path)
		switch {
		case err != nil:
			return err
		case !d.IsDir():
			files = append(files, inside)
		case inside != "." && !whole:
			return fs.SkipDir
		}
		return nil
	})
	if err != nil || whole {
		return [][]string{files}, err
	}
	return layers(dir, files)
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
