package gitrepo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/config"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/transport"
	gitstorage "github.com/go-git/go-git/v5/storage"
	"github.com/go-git/go-git/v5/storage/filesystem"
	"github.com/go-git/go-git/v5/storage/filesystem/dotgit"
	"github.com/go-git/go-git/v5/storage/memory"
	"golang.org/x/crypto/ssh/knownhosts"
)

// Bounds of one exchange with a remote: asking where the branch is, and
// fetching or pushing.
const (
	askTimeout      = 30 * time.Second
	transferTimeout = 30 * time.Minute
)

// remote is a repository elsewhere, with its mirror here.
type remote struct {
	dir      string
	branch   plumbing.ReferenceName
	endpoint *endpoint
}

func newRemote(dir, branch string, e *endpoint) (*remote, error) {
	if dir == "" {
		return nil, errors.New("open repository: Options.Dir is empty")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open repository: %w", err)
	}
	r := &remote{dir: dir, branch: plumbing.NewBranchReferenceName(branch), endpoint: e}
	return r, r.prepare()
}

// prepare makes the mirror, or the same mirror for another address: one that
// was filled from elsewhere is still a good start for a fetch, but what it
// says about the branch is not.
func (r *remote) prepare() error {
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return fmt.Errorf("make mirror: %w", err)
	}
	storage := newStorage(r.dir)
	if err := storage.dir.Initialize(); err != nil {
		return fmt.Errorf("make mirror %s: %w", r.dir, err)
	}
	if err := r.sweep(); err != nil {
		return fmt.Errorf("sweep mirror %s: %w", r.dir, err)
	}
	head := plumbing.NewSymbolicReference(plumbing.HEAD, r.branch)
	if err := storage.SetReference(head); err != nil {
		return fmt.Errorf("make mirror %s: %w", r.dir, err)
	}
	return r.claim()
}

// sweep removes what an interrupted fetch left behind.
func (r *remote) sweep() error {
	leftovers, err := filepath.Glob(filepath.Join(escapeGlob(r.dir), "objects", "pack", "tmp_*"))
	for _, file := range leftovers {
		err = errors.Join(err, os.Remove(file))
	}
	return err
}

// claim records in the mirror whose it is.
func (r *remote) claim() error {
	file := filepath.Join(r.dir, "tallyman-mirror-of")
	mine := Redact(r.endpoint.url) + "\n"
	if theirs, err := os.ReadFile(file); err == nil && string(theirs) == mine {
		return nil
	}
	if err := os.RemoveAll(filepath.Join(r.dir, "refs", "heads")); err != nil {
		return fmt.Errorf("take over mirror %s: %w", r.dir, err)
	}
	if err := os.WriteFile(file, []byte(mine), 0o600); err != nil {
		return fmt.Errorf("take over mirror %s: %w", r.dir, err)
	}
	return nil
}

func (r *remote) objectDirs() []string { return []string{filepath.Join(r.dir, "objects")} }

func (r *remote) known() string {
	sha, err := readRef(r.dir, r.branch)
	if err != nil {
		return ""
	}
	return sha
}

// watch has nothing to watch: a remote is polled, and poked by its webhook.
func (r *remote) watch(context.Context, func()) error { return nil }

// look asks where the branch is and fetches it if it moved.
func (r *remote) look(ctx context.Context) (string, error) {
	sha, err := r.ask(ctx)
	if err != nil {
		return "", r.endpoint.explain("ask", err)
	}
	if sha == r.known() {
		return sha, nil
	}
	if err := r.fetch(ctx); err != nil {
		return "", r.endpoint.explain("fetch", err)
	}
	if err := r.compact(); err != nil {
		return "", fmt.Errorf("compact mirror %s: %w", r.dir, err)
	}
	return r.known(), nil
}

func (r *remote) git() *git.Remote {
	return git.NewRemote(newStorage(r.dir), &config.RemoteConfig{Name: "origin", URLs: []string{r.endpoint.url}})
}

// ask lists the remote's references.
func (r *remote) ask(ctx context.Context) (string, error) {
	auth, bundle, err := r.endpoint.access()
	if err != nil {
		return "", err
	}
	refs, err := bounded(ctx, askTimeout, func(ctx context.Context) ([]*plumbing.Reference, error) {
		return r.git().ListContext(ctx, &git.ListOptions{Auth: auth, CABundle: bundle})
	})
	if errors.Is(err, transport.ErrEmptyRemoteRepository) {
		return "", noBranch(Redact(r.endpoint.url), r.branch.Short(), false)
	}
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(refs, func(ref *plumbing.Reference) bool { return ref.Name() == r.branch })
	if i < 0 {
		return "", noBranch(Redact(r.endpoint.url), r.branch.Short(), len(refs) > 0)
	}
	return refs[i].Hash().String(), nil
}

// fetch brings what is new on the branch into the mirror.
func (r *remote) fetch(ctx context.Context) error {
	auth, bundle, err := r.endpoint.access()
	if err != nil {
		return err
	}
	_, err = bounded(ctx, transferTimeout, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, r.git().FetchContext(ctx, &git.FetchOptions{
			RefSpecs: []config.RefSpec{config.RefSpec("+" + r.branch + ":" + r.branch)},
			Auth:     auth,
			CABundle: bundle,
			Tags:     git.NoTags,
			Force:    true,
		})
	})
	if errors.Is(err, git.NoErrAlreadyUpToDate) {
		return nil
	}
	return err
}

// Mirror pushes a revision to Options.MirrorTo, over whatever its branch holds
// there. It does nothing without MirrorTo.
func (r *Repository) Mirror(ctx context.Context, sha string) error {
	if r.mirror == nil {
		return nil
	}
	if _, err := r.view.commit(ctx, sha); err != nil {
		return fmt.Errorf("mirror %s: %w", sha, err)
	}
	auth, bundle, err := r.mirror.access()
	if err != nil {
		return r.mirror.explain("push", err)
	}
	// A push reads objects and nothing else of ours.
	source := &storage{Storer: memory.NewStorage(), objects: r.view.objects}
	target := git.NewRemote(source, &config.RemoteConfig{Name: "mirror", URLs: []string{r.mirror.url}})
	_, err = bounded(ctx, transferTimeout, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, target.PushContext(ctx, &git.PushOptions{
			RemoteName: "mirror",
			RefSpecs:   []config.RefSpec{config.RefSpec("+" + sha + ":refs/heads/" + r.options.Branch)},
			Auth:       auth,
			CABundle:   bundle,
		})
	})
	if err == nil || errors.Is(err, git.NoErrAlreadyUpToDate) {
		return nil
	}
	return r.mirror.explain("push", err)
}

// access reads what is needed to get in.
func (e *endpoint) access() (transport.AuthMethod, []byte, error) {
	auth, err := e.auth()
	if err != nil {
		return nil, nil, err
	}
	bundle, err := e.caBundle()
	return auth, bundle, err
}

// explain wraps an error of the transport with the place and, where a human
// must act, with ErrAccess and the next step.
func (e *endpoint) explain(operation string, err error) error {
	place := fmt.Sprintf("%s %s", operation, Redact(e.url))
	var hostKey *knownhosts.KeyError
	switch {
	case answered(err):
		return err
	case errors.As(err, &hostKey) && len(hostKey.Want) > 0:
		return fmt.Errorf("%s: %w: the host's key is not the known one; somebody may be listening in, or the host was set up anew: %w", place, ErrAccess, err)
	case errors.As(err, &hostKey):
		return fmt.Errorf("%s: %w: the host is not among the known ones; run: ssh-keyscan %s, compare the fingerprint and add the line to known_hosts",
			place, ErrAccess, e.parsed.Host)
	case errors.Is(err, transport.ErrAuthenticationRequired), errors.Is(err, transport.ErrAuthorizationFailed):
		return fmt.Errorf("%s: %w; check the user and the token: %w", place, ErrAccess, err)
	case errors.Is(err, transport.ErrRepositoryNotFound):
		return fmt.Errorf("%s: %w; check the address, and that the credentials may read it", place, err)
	}
	return fmt.Errorf("%s: %w", place, err)
}

// bounded runs an exchange that may not heed its context: go-git's ssh
// transport connects without it. When ctx ends or the time is over the
// exchange is left to end by itself, with its connection.
func bounded[T any](ctx context.Context, limit time.Duration, exchange func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	type outcome struct {
		value T
		err   error
	}
	done := make(chan outcome, 1)
	go func() {
		defer cancel()
		value, err := exchange(ctx)
		done <- outcome{value, err}
	}()
	select {
	case o := <-done:
		return o.value, o.err
	case <-ctx.Done():
	}
	select {
	case o := <-done: // both at once: what came back counts
		return o.value, o.err
	default:
		var none T
		return none, ctx.Err()
	}
}

// storage lets go-git fetch into a mirror and push from one while all reading
// goes through our objects: its own reading loads every pack index into memory.
type storage struct {
	gitstorage.Storer // references and configuration
	dir               *dotgit.DotGit
	objects           *objects
}

func newStorage(dir string) *storage {
	system := osfs.New(dir)
	bases := newLRU[baseKey, rawObject](deltaBases)
	return &storage{
		Storer:  filesystem.NewStorage(system, cache.NewObjectLRU(0)),
		dir:     dotgit.New(system),
		objects: openObjects([]string{filepath.Join(dir, "objects")}, bases),
	}
}

// PackfileWriter implements storer.PackfileWriter.
func (s *storage) PackfileWriter() (io.WriteCloser, error) { return s.dir.NewObjectPack() }

// EncodedObject implements storer.EncodedObjectStorer.
func (s *storage) EncodedObject(kind plumbing.ObjectType, id plumbing.Hash) (plumbing.EncodedObject, error) {
	raw, err := s.objects.read(id)
	if errors.Is(err, plumbing.ErrObjectNotFound) || err == nil && kind != plumbing.AnyObject && kind != raw.kind {
		return nil, plumbing.ErrObjectNotFound
	}
	if err != nil {
		return nil, err
	}
	return memoryObject(raw), nil
}

// HasEncodedObject implements storer.EncodedObjectStorer.
func (s *storage) HasEncodedObject(id plumbing.Hash) error {
	_, err := s.EncodedObjectSize(id)
	return err
}

// EncodedObjectSize implements storer.EncodedObjectStorer.
func (s *storage) EncodedObjectSize(id plumbing.Hash) (int64, error) {
	size, err := s.objects.size(id)
	if errors.Is(err, plumbing.ErrObjectNotFound) {
		return 0, plumbing.ErrObjectNotFound
	}
	return size, err
}

// DeltaObject implements storer.DeltaObjectStorer; a whole object is allowed.
func (s *storage) DeltaObject(kind plumbing.ObjectType, id plumbing.Hash) (plumbing.EncodedObject, error) {
	return s.EncodedObject(kind, id)
}
