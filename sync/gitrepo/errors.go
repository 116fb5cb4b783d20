package gitrepo

import (
	"errors"
	"fmt"
)

// What can be wrong with a repository as a whole. A Head carries them wrapped
// with the place and the next step.
var (
	// ErrEmpty is returned when the repository has no commit at all yet.
	ErrEmpty = errors.New("the repository is empty")
	// ErrNoBranch is returned when the repository has commits, but not the branch.
	ErrNoBranch = errors.New("the branch does not exist")
	// ErrNoPath is returned when the branch's tree does not hold the path.
	ErrNoPath = errors.New("the path does not exist")
	// ErrNotRepository is returned when a local path holds no Git repository.
	ErrNotRepository = errors.New("not a Git repository")
	// ErrNoRevision is returned when no commit has the asked id.
	ErrNoRevision = errors.New("no such revision")
	// ErrAccess is returned when the remote refuses our credentials, or when
	// its host key is not the known one: somebody must act.
	ErrAccess = errors.New("access denied")
)

// MaxFile is the largest file that can be read from a revision, in bytes.
const MaxFile = 10 << 20

// FileError says why one file of a revision cannot be read, in words for the
// one who wrote the repository.
type FileError struct {
	// Path is from the repository's root, as it was asked for.
	Path string
	// Why is the cause: "is a submodule".
	Why string
	// Hint is the next step.
	Hint string
}

// Error gives one sentence.
func (e *FileError) Error() string { return fmt.Sprintf("%s %s (%s)", e.Path, e.Why, e.Hint) }
