package manifest

import (
	"context"
	"fmt"
	"io/fs"

	"github.com/tallyman-dev/tallyman/desired"
)

// Render gives what kustomize makes of a directory of the tree, as YAML and
// unread: for somebody who wants to see or compare it. The text is empty if and
// only if there are problems, or the kustomization gives no objects. The error
// is for a build that cannot be made now.
func (l *Loader) Render(ctx context.Context, tree fs.FS, dir string) ([]byte, []desired.Problem, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // a build that was given up reads no more
	view := newView(ctx, tree)
	guard := &refusals{view: view, weights: map[string]weight{}}
	if guard.check(dir, false); len(guard.problems) > 0 {
		return nil, guard.problems, nil
	}
	m, err := l.run(ctx, view, dir)
	if ctx.Err() != nil {
		return nil, nil, ctx.Err()
	}
	if err != nil {
		return nil, refusedFile(view.tagged, "kustomize", buildMessage(err), "").problems, nil
	}
	for _, r := range m.Resources() {
		if err := stripOrigin(r); err != nil {
			return nil, nil, fmt.Errorf("render %s: %w", dir, err)
		}
	}
	text, err := m.AsYaml()
	if err != nil {
		return nil, nil, fmt.Errorf("render %s: %w", dir, err)
	}
	return text, nil, nil
}
