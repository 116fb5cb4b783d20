// Package gitrepo follows one branch of a Git repository and reads its
// revisions straight from Git's objects, without a checkout.
//
// A repository on this machine is read in place and never written; fsnotify
// tells of a push within milliseconds. Any other is fetched, incrementally,
// into a bare mirror that this package owns. Run does either until its context
// ends, and Heads tells what the branch points at: the newest wins.
//
// Guarantees:
//   - What cannot be reached or read is an error in a Head, never an empty
//     tree: nobody deletes anything because of it.
//   - Memory is bounded by what is read, not by the length of the history or
//     the size of its packs.
//   - No path of a revision's tree leads out of the tree; a file that cannot
//     be read gives a *FileError that says why and what to do.
//
// It does not read manifests, does not decide whether a revision is applied,
// and does not verify signatures: it says only whether there is one.
package gitrepo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/tallyman-dev/tallyman/desired"
)

// Options say what to follow and how.
type Options struct {
	// Dir is where the mirror of a remote repository is kept; this package
	// owns it. Unused for a repository on this machine.
	Dir string
	// URL is https://…, http://…, ssh://…, git@host:path, file:///… or a path.
	URL string
	// Branch to follow; default main.
	Branch string
	// Path is the directory in the repository that counts; default ".".
	Path string
	// Interval between two looks, give or take a tenth; default one minute.
	// Pushes to a repository on this machine are noticed at once besides.
	Interval time.Duration
	// Credentials for URL.
	Credentials Credentials
	// MirrorTo is where Mirror pushes to; empty for nowhere.
	MirrorTo string
	// MirrorCredentials are those for MirrorTo.
	MirrorCredentials Credentials
	Log               *slog.Logger
}

// Repository follows one branch. Its methods are safe for concurrent use; Run
// is called once.
type Repository struct {
	options Options
	source  source
	view    *View
	mirror  *endpoint // nil without MirrorTo
	heads   chan Head
	poke    chan struct{}
}

// Head is what one look at the branch found.
type Head struct {
	// Revision is the commit that the branch points at. With Err set it is the
	// last one known, or zero.
	Revision desired.Revision
	// Rewritten says that the branch moved to a commit that does not descend
	// from Previous.
	Rewritten bool
	// Previous is the commit that the branch pointed at before it moved; empty
	// when it did not move or nothing was known.
	Previous string
	// Err says why the branch could not be read: the repository is unreachable,
	// or lacks the branch or the path. It is fit to be shown, and holds no credentials.
	Err error
	// Fetched is the last time that the repository answered; zero for never.
	Fetched time.Time
	// Next is when the next look happens, unless something wakes us earlier.
	Next time.Time
}

// source is where the branch comes from: a local repository or a mirror.
type source interface {
	// look returns the commit that the branch points at, with all its objects
	// readable below objectDirs.
	look(ctx context.Context) (sha string, err error)
	// known is the commit that an earlier look found, from disk; empty for none.
	known() string
	objectDirs() []string
	// watch calls changed whenever the branch may have moved, until ctx ends.
	watch(ctx context.Context, changed func()) error
}

// Open checks the options and prepares to follow. It does not touch the network.
func Open(o Options) (*Repository, error) {
	if o.Log == nil {
		return nil, errors.New("open repository: Options.Log is nil")
	}
	o.setDefaults()
	if err := o.check(); err != nil {
		return nil, err
	}
	source, err := newSource(o)
	if err != nil {
		return nil, err
	}
	r := &Repository{
		options: o,
		source:  source,
		view:    newView(source.objectDirs(), o.Path),
		heads:   make(chan Head, 1),
		poke:    make(chan struct{}, 1),
	}
	if o.MirrorTo != "" {
		if r.mirror, err = newEndpoint(o.MirrorTo, o.MirrorCredentials); err != nil {
			return nil, fmt.Errorf("mirror to %s: %w", Redact(o.MirrorTo), err)
		}
	}
	return r, nil
}

func (o *Options) setDefaults() {
	if o.Branch == "" {
		o.Branch = "main"
	}
	if o.Path == "" {
		o.Path = "."
	}
	o.Path = path.Clean(strings.TrimSuffix(filepath.ToSlash(o.Path), "/"))
	if o.Interval <= 0 {
		o.Interval = time.Minute
	}
}

func (o *Options) check() error {
	if !fs.ValidPath(o.Path) {
		return fmt.Errorf("open repository: path %q is not a path within the repository", o.Path)
	}
	if err := plumbing.NewBranchReferenceName(o.Branch).Validate(); err != nil {
		return fmt.Errorf("open repository: branch %q: %w", o.Branch, err)
	}
	return nil
}

func newSource(o Options) (source, error) {
	if o.URL == "" {
		return nil, errors.New("open repository: no URL")
	}
	if dir, local := localPath(o.URL); local {
		return newLocal(dir, o.Branch)
	}
	endpoint, err := newEndpoint(o.URL, o.Credentials)
	if err != nil {
		return nil, fmt.Errorf("open repository %s: %w", Redact(o.URL), err)
	}
	return newRemote(o.Dir, o.Branch, endpoint)
}

// Heads tells what each look found. The channel holds one value, the newest;
// a Rewritten that nobody has read yet is kept. It is never closed.
func (r *Repository) Heads() <-chan Head { return r.heads }

// Poke makes Run look now. It never blocks.
func (r *Repository) Poke() {
	select {
	case r.poke <- struct{}{}:
	default: // one is already waiting
	}
}

// Tip is the commit that the branch points at right now, for a repository on
// this machine.
func (r *Repository) Tip(ctx context.Context) (string, error) {
	here, ok := r.source.(*local)
	if !ok {
		return "", fmt.Errorf("look at branch %s: %s is not a repository on this machine", r.options.Branch, Redact(r.options.URL))
	}
	return here.look(ctx)
}

// Revision reads a commit; see View.Revision.
func (r *Repository) Revision(ctx context.Context, sha string) (desired.Revision, error) {
	return r.view.Revision(ctx, sha)
}

// Tree is the whole tree of a commit; see View.Tree.
func (r *Repository) Tree(ctx context.Context, sha string) (fs.FS, error) {
	return r.view.Tree(ctx, sha)
}

// Descends reports whether the commit to is from or descends from it.
func (r *Repository) Descends(ctx context.Context, from, to string) (bool, error) {
	return r.view.Descends(ctx, from, to)
}

// Quarantine sees the objects in further object directories besides: those of
// a push that waits for its check. The view holds for as long as they exist.
func (r *Repository) Quarantine(dirs ...string) (*View, error) {
	for _, dir := range dirs {
		if !filepath.IsAbs(dir) {
			return nil, fmt.Errorf("quarantine %q: not an absolute path", dir)
		}
	}
	return r.view.quarantine(dirs), nil
}
