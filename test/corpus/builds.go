package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

// built is one kustomization, as kustomize and as Tallyman build it.
type built struct {
	source, root string
	// reference is "ok" when kustomize builds it.
	reference string
	// equal means that both give the same objects in the same order.
	equal bool
	// refusal is why Tallyman does not build it.
	refusal string
}

// builds builds every root of rendered/kustomize-results.tsv.
func (t *trial) builds(ctx context.Context) ([]built, error) {
	rows, err := readTable(filepath.Join(t.dir, "rendered", "kustomize-results.tsv"), 4)
	if err != nil {
		return nil, err
	}
	var out []built
	for _, row := range rows {
		b := built{source: row[0], root: path.Dir(row[1]), reference: row[2]}
		got, err := t.buildOne(ctx, &b)
		if err != nil {
			return nil, err
		}
		if b.reference == "ok" && b.refusal == "" {
			want, err := os.ReadFile(filepath.Join(t.dir, "rendered", "kustomize", filepath.FromSlash(b.root)+".yaml"))
			if errors.Is(err, fs.ErrNotExist) {
				continue // the collection does not hold its output
			}
			if err != nil {
				return nil, err
			}
			diff := cmp.Diff(values(want), values(got))
			if b.equal = diff == ""; !b.equal {
				t.fault("%s: not what kustomize builds (-want +got):\n%s", b.root, diff)
			}
		}
		out = append(out, b)
	}
	return out, nil
}

// buildOne renders a root within its repository: the second part of its path.
func (t *trial) buildOne(ctx context.Context, b *built) ([]byte, error) {
	parts := strings.SplitN(b.root, "/", 3)
	repository, root := path.Join(parts[:min(2, len(parts))]...), "."
	if len(parts) == 3 {
		root = parts[2]
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	text, problems, err := t.loader.Render(ctx, os.DirFS(filepath.Join(t.dir, "manifests", filepath.FromSlash(repository))), root)
	if err != nil {
		return nil, err
	}
	if len(problems) > 0 {
		b.refusal = problems[0].Message
	}
	return text, nil
}

// values are the documents of a text, decoded; those without content left out.
func values(text []byte) []any {
	documents, err := split(text)
	if err != nil {
		return []any{err.Error()}
	}
	var out []any
	for _, d := range documents {
		var value any
		if err := yaml.Unmarshal(d, &value); err != nil {
			value = err.Error()
		}
		if value != nil {
			out = append(out, value)
		}
	}
	return slices.Clip(out)
}
