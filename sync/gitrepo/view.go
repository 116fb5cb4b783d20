package gitrepo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/object"

	"github.com/tallyman-dev/tallyman/desired"
)

// Budgets of the caches, in bytes. A loader reads a directory once and then
// its files one by one, so parsed trees matter more than contents.
const (
	cachedTrees = 8 << 20
	cachedBlobs = 4 << 20
)

// View reads revisions from a set of Git objects. Safe for concurrent use.
type View struct {
	objects *objects
	path    string
	trees   *lru[plumbing.Hash, *tree]
	blobs   *lru[plumbing.Hash, []byte]
	bases   *lru[baseKey, rawObject]
}

func newView(objectDirs []string, path string) *View {
	bases := newLRU[baseKey, rawObject](deltaBases)
	return &View{
		objects: openObjects(objectDirs, bases),
		path:    path,
		trees:   newLRU[plumbing.Hash, *tree](cachedTrees),
		blobs:   newLRU[plumbing.Hash, []byte](cachedBlobs),
		bases:   bases,
	}
}

// quarantine sees further object directories too. The caches are shared: an
// id names the same content wherever it lies.
func (v *View) quarantine(dirs []string) *View {
	wider := *v
	wider.objects = v.objects.with(dirs, v.bases)
	return &wider
}

// Revision reads a commit. The error wraps ErrNoRevision when there is none
// with this id, and ErrNoPath when its tree does not hold the path.
func (v *View) Revision(ctx context.Context, sha string) (desired.Revision, error) {
	commit, err := v.commit(ctx, sha)
	if err != nil {
		return desired.Revision{}, err
	}
	revision := desired.Revision{
		SHA:     commit.Hash.String(),
		Tree:    commit.TreeHash.String(),
		Author:  strings.ToValidUTF8(commit.Author.Name, "�"),
		Email:   strings.ToValidUTF8(commit.Author.Email, "�"),
		Message: strings.ToValidUTF8(commit.Message, "�"),
		Time:    commit.Committer.When,
		Signed:  commit.PGPSignature != "",
	}
	return revision, v.checkPath(commit)
}

// checkPath makes sure that the followed path is a directory of the commit.
func (v *View) checkPath(commit *object.Commit) error {
	info, err := fs.Stat(newTreeFS(v, commit.TreeHash), v.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: commit %s has no directory %q; create it, or name another with --path",
			ErrNoPath, commit.Hash.String()[:7], v.path)
	case err != nil:
		return fmt.Errorf("look at path %q of commit %s: %w", v.path, commit.Hash.String()[:7], err)
	case !info.IsDir():
		return fmt.Errorf("%w: %q is a file in commit %s; --path takes a directory",
			ErrNoPath, v.path, commit.Hash.String()[:7])
	}
	return nil
}

// Tree is the whole tree of a commit, read from Git's objects when somebody
// looks. It implements fs.ReadDirFS, fs.ReadFileFS and fs.StatFS. The error
// wraps ErrNoRevision when there is no such commit.
func (v *View) Tree(ctx context.Context, sha string) (fs.FS, error) {
	commit, err := v.commit(ctx, sha)
	if err != nil {
		return nil, err
	}
	return newTreeFS(v, commit.TreeHash), nil
}

func (v *View) commit(ctx context.Context, sha string) (*object.Commit, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !plumbing.IsHash(sha) {
		return nil, fmt.Errorf("%w: %q is not a full commit id", ErrNoRevision, sha)
	}
	commit, err := v.readCommit(plumbing.NewHash(sha))
	if errors.Is(err, plumbing.ErrObjectNotFound) {
		return nil, fmt.Errorf("%w: %s", ErrNoRevision, sha)
	}
	return commit, err
}

func (v *View) readCommit(id plumbing.Hash) (*object.Commit, error) {
	raw, err := v.objects.read(id)
	if err != nil {
		return nil, err
	}
	if raw.kind != plumbing.CommitObject {
		return nil, fmt.Errorf("%w: %s is a %s, not a commit", ErrNoRevision, id, raw.kind)
	}
	commit, err := object.DecodeCommit(nil, memoryObject(raw))
	if err != nil {
		return nil, fmt.Errorf("decode commit %s: %w", id, err)
	}
	commit.Hash = id
	return commit, nil
}

// tree returns a parsed tree, from the cache if it is there.
func (v *View) tree(id plumbing.Hash) (*tree, error) {
	if cached, found := v.trees.get(id); found {
		return cached, nil
	}
	raw, err := v.objects.read(id)
	if err != nil {
		return nil, err
	}
	if raw.kind != plumbing.TreeObject {
		return nil, fmt.Errorf("object %s is a %s, not a tree", id, raw.kind)
	}
	parsed, err := parseTree(raw.content)
	if err != nil {
		return nil, fmt.Errorf("parse tree %s: %w", id, err)
	}
	v.trees.put(id, parsed, parsed.size)
	return parsed, nil
}

// blob returns a file's content, shared and read-only. The caller has checked
// its size.
func (v *View) blob(id plumbing.Hash) ([]byte, error) {
	if cached, found := v.blobs.get(id); found {
		return cached, nil
	}
	raw, err := v.objects.read(id)
	if err != nil {
		return nil, err
	}
	if raw.kind != plumbing.BlobObject {
		return nil, fmt.Errorf("object %s is a %s, not a file", id, raw.kind)
	}
	v.blobs.put(id, raw.content, int64(len(raw.content)))
	return raw.content, nil
}

// blobSize tells a file's size, from the cache if its content is there.
func (v *View) blobSize(id plumbing.Hash) (int64, error) {
	if cached, found := v.blobs.get(id); found {
		return int64(len(cached)), nil
	}
	return v.objects.size(id)
}

func memoryObject(raw rawObject) *plumbing.MemoryObject {
	memory := &plumbing.MemoryObject{}
	memory.SetType(raw.kind)
	_, _ = memory.Write(raw.content) // never fails
	return memory
}
