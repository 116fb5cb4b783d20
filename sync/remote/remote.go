// Package remote is the embedded Git remote: a bare repository that the git
// program serves over HTTP, by path and over ssh alike, with hooks that ask
// the running server before the followed branch moves and that show the pusher
// what comes of it.
//
// Guarantees:
//   - The followed branch moves only after Gate.Check agreed to the very
//     commit. Whatever goes wrong on the way (no server, an error, a server
//     that dies half-way) refuses the push.
//   - Once it has moved, the push succeeds, whatever the rollout does and
//     whether or not anybody still watches.
//   - Checks come one after another; watching holds nothing up.
//   - Other branches and tags are accepted unchecked.
//
// It decides nothing about a revision itself, does not follow the branch
// (package sync/gitrepo does), and checks no token: access is up to whoever
// mounts its handlers, and to the permissions of repository and socket.
package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"

	"golang.org/x/sync/semaphore"
)

// ErrRefused is returned by Gate.Check, wrapped or not, to refuse a push whose
// reasons it has already written.
var ErrRefused = errors.New("push refused")

// Options say where the repository is and who decides.
type Options struct {
	// Dir is the bare repository; it is made if it is missing.
	Dir string
	// Branch is the followed one.
	Branch string
	// Socket is the unix socket where HookHandler is served.
	Socket string
	// Executable is the tally binary, which the hooks run.
	Executable string
	// Group may push by path; ignored if the system has none of this name.
	Group string
	Gate  Gate
	Log   *slog.Logger
}

// Gate decides about pushes to the followed branch.
type Gate interface {
	// Check decides before the branch moves. What it writes to w goes to the
	// pusher at once. An error refuses the push; ErrRefused says that w has the
	// reasons. Checks never overlap.
	Check(ctx context.Context, p Push, w io.Writer) error
	// Follow is called after the branch moved and writes progress to w until
	// the revision is converged, failed or superseded, or ctx ends: nobody
	// watches any more. It is called for many pushes at the same time.
	Follow(ctx context.Context, sha string, w io.Writer) error
}

// Push is one update of the followed branch that waits for its check. It
// neither deletes the branch nor rewrites it: those are refused before.
type Push struct {
	// Branch is the short name.
	Branch string
	// Old and New are full commit ids; Old is empty for a branch that is new.
	Old, New string
	// ObjectDirs hold the push's objects until it is accepted: they are in no
	// other place, and gone or moved afterwards.
	ObjectDirs []string
	// Options are those given with git push -o.
	Options []string
}

// Remote serves one repository. Its handlers are safe for concurrent use.
type Remote struct {
	options  Options
	git      string
	checking *semaphore.Weighted // held during Gate.Check
	serving  *semaphore.Weighted // one for each git http-backend
}

// maxServing bounds the git processes that HTTP requests start.
const maxServing = 64

// New makes the repository if it is missing and brings its configuration and
// hooks up to date. It starts nothing.
func New(o Options) (*Remote, error) {
	switch {
	case o.Dir == "", o.Branch == "", o.Socket == "", o.Executable == "":
		return nil, errors.New("embedded remote: Options needs Dir, Branch, Socket and Executable")
	case o.Gate == nil:
		return nil, errors.New("embedded remote: Options.Gate is nil")
	case o.Log == nil:
		return nil, errors.New("embedded remote: Options.Log is nil")
	}
	for _, path := range []*string{&o.Dir, &o.Socket, &o.Executable} {
		absolute, err := filepath.Abs(*path)
		if err != nil {
			return nil, fmt.Errorf("embedded remote: %w", err)
		}
		*path = absolute
	}
	git, err := findGit()
	if err != nil {
		return nil, err
	}
	r := &Remote{
		options:  o,
		git:      git,
		checking: semaphore.NewWeighted(1),
		serving:  semaphore.NewWeighted(maxServing),
	}
	if err := r.setUp(); err != nil {
		return nil, fmt.Errorf("embedded remote %s: %w", o.Dir, err)
	}
	return r, nil
}

// Handler serves the repository over smart HTTP below /<name of Dir>/.
func (r *Remote) Handler() http.Handler { return http.HandlerFunc(r.serveHTTP) }

// HookHandler answers the hooks. It belongs on the unix socket alone: whoever
// reaches it may ask for a check, and see what a check says.
func (r *Remote) HookHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /"+preReceive, r.servePreReceive)
	mux.HandleFunc("POST /"+postReceive, r.servePostReceive)
	return mux
}

func (r *Remote) ref() string { return "refs/heads/" + r.options.Branch }
