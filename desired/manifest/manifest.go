// Package manifest reads one revision of a repository, an fs.FS, and turns it
// into a desired.Snapshot, or says everything that keeps it from becoming one.
//
// Guarantees: a Snapshot is complete or nil. Every problem of a revision is
// reported at once, with file, line, document and field, and none twice. The
// same tree gives the same Snapshot and the same problems, byte for byte. No
// field of a supported kind is silently ignored: the tables in kinds.go and
// fields.go decide every one of them, and docs/compatibility.md is printed from
// the same tables. Whatever the tree holds, Load neither panics nor runs
// without bound (limits.go), and no value of a Secret gets into a message.
//
// The package does not fetch anything (a kustomization that points outside of
// the tree is refused), runs no program, writes nothing, and decides nothing
// about what happens next: that is the planner's. It is the only importer of
// k8s.io/kubernetes.
package manifest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tallyman-dev/tallyman/desired"
)

// Loader reads revisions. It remembers the outcome of every file by its content,
// so that reading the next revision costs what changed. Safe for concurrent use.
type Loader struct {
	rules *rules
	cache *cache
	// building holds a value while kustomize builds: one at a time, for the
	// library keeps its schema in package variables. A build that was given up
	// keeps its place until it has ended.
	building chan struct{}
	patience time.Duration
}

// NewLoader makes a Loader with an empty memory.
func NewLoader() *Loader {
	return &Loader{
		rules: newRules(), cache: newCache(maxCacheBytes),
		building: make(chan struct{}, 1), patience: buildPatience,
	}
}

// LoadOptions say how a revision is read.
type LoadOptions struct {
	// Path is the folder of the tree that is followed; empty or "." means all
	// of it. Kustomizations may reach outside of it, within the tree.
	Path string
	// Previous is what is in force, for fields that cannot change; may be nil.
	Previous *desired.Snapshot
	// Lenient is for reading again the revision that is already in force: what
	// a stricter version of Tallyman finds becomes a warning, so that it stays
	// runnable. A document that cannot be decoded at all stays an error, for
	// leaving it out would delete its object.
	Lenient bool
}

// Result is what tally validate prints.
type Result struct {
	// Objects counts what was rendered: of a refused revision, what could be
	// decoded.
	Objects  int               `json:"objects"`
	Problems []desired.Problem `json:"problems"`
}

// ContentIdentifier is implemented by the directory entries of a tree that
// knows its contents by hash, as Git does. Equal ids mean equal contents.
type ContentIdentifier interface{ ContentID() string }

// Load reads one revision. The snapshot is nil if and only if a problem of
// severity error is among the problems, which are sorted. The error is only for
// a tree that cannot be read at all, or not now: then nothing is known.
func (l *Loader) Load(ctx context.Context, tree fs.FS, rev desired.Revision, o LoadOptions) (*desired.Snapshot, []desired.Problem, error) {
	snapshot, result, err := l.load(ctx, tree, rev, o)
	return snapshot, result.Problems, err
}

// Validate is Load for somebody who only wants to know what is wrong. Problems
// is never nil without an error.
func (l *Loader) Validate(ctx context.Context, tree fs.FS, o LoadOptions) (Result, error) {
	snapshot, result, err := l.load(ctx, tree, desired.Revision{}, o)
	if err != nil {
		return Result{}, err
	}
	if snapshot != nil {
		result.Objects = snapshot.Len()
	}
	if result.Problems == nil {
		result.Problems = []desired.Problem{}
	}
	return result, nil
}

// load reads one revision; Objects of the result counts what was decoded.
func (l *Loader) load(ctx context.Context, tree fs.FS, rev desired.Revision, o LoadOptions) (*desired.Snapshot, Result, error) {
	root := path.Clean("/" + o.Path)[1:]
	if root == "" {
		root = "."
	}
	survey, err := look(ctx, tree, root)
	if err != nil {
		return nil, Result{}, err
	}
	found := &findings{}
	if survey.refused {
		found.problems = survey.problems
		return nil, Result{Problems: found.sorted()}, nil
	}
	builds, err := l.build(ctx, tree, survey)
	if err != nil {
		return nil, Result{}, err
	}
	plain := survey.plainFiles(builds)
	files, err := l.read(ctx, tree, plain)
	if errors.Is(err, errTooMuch) {
		survey.problems = nil
		survey.refuse(root, err.Error())
		return nil, Result{Problems: survey.problems}, nil
	}
	if err != nil {
		return nil, Result{}, err
	}
	for _, f := range files {
		found.add(f)
	}
	for _, b := range builds {
		found.add(b.result)
	}
	found.problems = append(found.problems, survey.problems...)
	found.problems = append(found.problems, survey.unused(builds)...)
	decoded := len(found.entries)
	snapshot := l.judge(found, rev, o)
	return snapshot, Result{Objects: decoded, Problems: found.sorted()}, nil
}

// errTooMuch is returned by read for a revision beyond maxTotalBytes.
var errTooMuch = fmt.Errorf("the manifests below the followed path are larger than %d MiB together", maxTotalBytes>>20)

// read parses files, in parallel, in the order given.
func (l *Loader) read(ctx context.Context, tree fs.FS, files []file) ([]*parsed, error) {
	out := make([]*parsed, len(files))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	var total atomic.Int64
	const batch = 32
	for low := 0; low < len(files); low += batch {
		high := min(low+batch, len(files))
		group.Go(func() error {
			for i := low; i < high; i++ {
				if err := ctx.Err(); err != nil {
					return err
				}
				out[i] = l.readFile(tree, files[i])
				if total.Add(int64(out[i].size)) > maxTotalBytes {
					return errTooMuch
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return out, nil
}

// readFile gives the outcome of one file, from memory if its content is known.
func (l *Loader) readFile(tree fs.FS, f file) *parsed {
	if f.id != "" {
		if p, ok := l.cache.get(f.path + "\x00" + f.id).(*parsed); ok {
			return p
		}
	}
	data, err := readBounded(tree, f.path)
	if err != nil {
		return refusedFile(f.path, "unreadable", err.Error(), "")
	}
	id := f.id
	if id == "" {
		id = contentHash(data)
		if p, ok := l.cache.get(f.path + "\x00" + id).(*parsed); ok {
			return p
		}
	}
	p := l.rules.parseFile(f.path, data)
	p.size = len(data)
	l.cache.put(f.path+"\x00"+id, p, len(data))
	return p
}
