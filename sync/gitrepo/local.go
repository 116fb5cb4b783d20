package gitrepo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/fsnotify/fsnotify"
	"github.com/go-git/go-git/v5/plumbing"
)

// local is a repository on this machine, read in place.
type local struct {
	dir    string // as the user named it
	branch plumbing.ReferenceName
}

// newLocal takes a bare repository, or the working tree or .git of another.
// It may be absent or no repository yet: look says so.
func newLocal(dir, branch string) (*local, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open repository %s: %w", dir, err)
	}
	return &local{dir: dir, branch: plumbing.NewBranchReferenceName(branch)}, nil
}

func (l *local) known() string { return "" }

// objectDirs are both places where objects may come to lie when there is no
// repository yet.
func (l *local) objectDirs() []string {
	if _, err := os.Stat(l.dir); err != nil {
		return []string{filepath.Join(l.dir, "objects"), filepath.Join(l.dir, ".git", "objects")}
	}
	return []string{filepath.Join(l.gitDir(), "objects")}
}

// gitDir is the directory that holds refs and objects: dir itself if it is
// bare, its .git, or where a .git file and a linked working tree point to.
func (l *local) gitDir() string {
	git := filepath.Join(l.dir, ".git")
	info, err := os.Stat(git)
	if err != nil {
		return l.dir
	}
	if !info.IsDir() {
		content, err := os.ReadFile(git)
		target, isLink := strings.CutPrefix(strings.TrimSpace(string(content)), "gitdir:")
		if err != nil || !isLink {
			return l.dir
		}
		git = absolute(strings.TrimSpace(target), l.dir)
	}
	if common, err := os.ReadFile(filepath.Join(git, "commondir")); err == nil {
		git = absolute(strings.TrimSpace(string(common)), git)
	}
	return git
}

func absolute(path, base string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(base, path)
}

func (l *local) look(ctx context.Context) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	git := l.gitDir()
	if err := checkFormat(git); err != nil {
		return "", fmt.Errorf("repository %s: %w", l.dir, err)
	}
	sha, err := readRef(git, l.branch)
	if err != nil {
		return "", fmt.Errorf("repository %s: %w", l.dir, err)
	}
	if sha != "" {
		return sha, nil
	}
	some, err := hasRefs(git)
	if err != nil {
		return "", fmt.Errorf("repository %s: %w", l.dir, err)
	}
	return "", noBranch(l.dir, l.branch.Short(), some)
}

// noBranch says that a branch is missing, and whether anything else is there.
func noBranch(repo, branch string, others bool) error {
	if others {
		return fmt.Errorf("repository %s has no branch %q: %w; push it, or name another with --branch", repo, branch, ErrNoBranch)
	}
	return fmt.Errorf("repository %s has no commits yet: %w; push to its branch %q", repo, ErrEmpty, branch)
}

// checkFormat makes sure that git is a repository in the format that we read.
func checkFormat(git string) error {
	if _, err := os.Stat(filepath.Join(git, "HEAD")); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: %s has no HEAD", ErrNotRepository, git)
		}
		return err
	}
	config, err := os.ReadFile(filepath.Join(git, "config"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for line := range strings.Lines(strings.ToLower(string(config))) {
		key, value, _ := strings.Cut(line, "=")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		if key == "objectformat" && value != "sha1" || key == "refstorage" && value != "files" {
			return fmt.Errorf("extensions.%s = %s is not supported; make the repository anew with sha1 objects and refs in files", key, value)
		}
	}
	return nil
}

// readRef resolves a branch, loose before packed; empty if there is none.
func readRef(git string, ref plumbing.ReferenceName) (string, error) {
	const maxSymbolic = 5 // as Git has it
	for range maxSymbolic {
		content, err := os.ReadFile(filepath.Join(git, filepath.FromSlash(ref.String())))
		if errors.Is(err, fs.ErrNotExist) || isDirectory(err) {
			return packedRef(git, ref)
		}
		if err != nil {
			return "", err
		}
		value := strings.TrimSpace(string(content))
		target, symbolic := strings.CutPrefix(value, "ref: ")
		if !symbolic {
			if !plumbing.IsHash(value) {
				return "", fmt.Errorf("reference %s holds %q", ref, value)
			}
			return value, nil
		}
		ref = plumbing.ReferenceName(target)
		if err := ref.Validate(); err != nil {
			return "", fmt.Errorf("reference %s: %w", ref, err)
		}
	}
	return "", fmt.Errorf("reference %s: too many symbolic references", ref)
}

func isDirectory(err error) bool {
	var pathError *fs.PathError
	return errors.As(err, &pathError) && strings.Contains(pathError.Err.Error(), "is a directory")
}

// packedRef looks a reference up in packed-refs; empty if it is not there.
func packedRef(git string, ref plumbing.ReferenceName) (string, error) {
	file, err := os.Open(filepath.Join(git, "packed-refs"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer func() { _ = file.Close() }() // only read
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		sha, name, found := strings.Cut(lines.Text(), " ")
		if found && name == ref.String() && plumbing.IsHash(sha) {
			return sha, nil
		}
	}
	return "", lines.Err()
}

// hasRefs reports whether the repository has any branch or tag at all.
func hasRefs(git string) (bool, error) {
	if info, err := os.Stat(filepath.Join(git, "packed-refs")); err == nil && info.Size() > 0 {
		return true, nil
	}
	found := false
	err := filepath.WalkDir(filepath.Join(git, "refs"), func(_ string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			found = true
			return fs.SkipAll
		}
		return err
	})
	return found, err
}

// watch tells of changes of the branch: Git replaces its file, packed-refs or
// HEAD by renaming a lock file. Without inotify the poll is left.
func (l *local) watch(ctx context.Context, changed func()) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch repository %s: %w", l.dir, err)
	}
	defer func() { _ = watcher.Close() }() // nothing depends on it
	l.addWatches(watcher)
	for {
		select {
		case <-ctx.Done():
			return nil
		case event, open := <-watcher.Events:
			if !open {
				return nil
			}
			if strings.HasSuffix(event.Name, ".lock") || event.Op == fsnotify.Chmod {
				continue
			}
			l.addWatches(watcher)
			if l.concerns(event.Name) {
				changed()
			}
		case _, open := <-watcher.Errors:
			if !open {
				return nil
			}
			changed() // events were lost, perhaps ours
		}
	}
}

// addWatches watches every directory on the way to the branch's file that
// exists. Watching one twice changes nothing.
func (l *local) addWatches(watcher *fsnotify.Watcher) {
	git := l.gitDir()
	dirs := []string{git}
	elements := strings.Split(l.branch.String(), "/")
	for i := range len(elements) - 1 {
		dirs = append(dirs, filepath.Join(git, filepath.Join(elements[:i+1]...)))
	}
	if git != l.dir {
		dirs = append(dirs, l.dir) // .git may be made anew
	}
	if _, err := os.Stat(l.dir); err != nil {
		dirs = []string{filepath.Dir(l.dir)}
	}
	for _, dir := range dirs {
		_ = watcher.Add(dir) // one that is not there yet comes with its parent's event
	}
}

// concerns reports whether a changed file can move the branch: the file
// itself, a directory on the way to it, packed-refs or HEAD.
func (l *local) concerns(name string) bool {
	git := l.gitDir()
	ref := filepath.Join(git, filepath.FromSlash(l.branch.String()))
	switch name {
	case filepath.Join(git, "packed-refs"), filepath.Join(git, "HEAD"), git, l.dir:
		return true
	}
	return ref == name || strings.HasPrefix(ref, name+string(filepath.Separator))
}
