package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// The hooks, by Git's names. Each is a POST to its own path of the socket,
// with a hookRequest as body. The answer is text for the pusher, sent as it
// comes, and the trailer verdictTrailer at its end.
const (
	preReceive  = "pre-receive"
	postReceive = "post-receive"

	verdictTrailer = "Tally-Verdict"
	verdictAccept  = "accept"
	verdictRefuse  = "refuse"
)

// maxHookRequest bounds what a hook may say, push options included.
const maxHookRequest = 1 << 20

// zeroID stands in hook input for a branch that is not there.
const zeroID = "0000000000000000000000000000000000000000"

// hookRequest is what a hook tells the server.
type hookRequest struct {
	// Old, New and Ref are the update of the followed branch.
	Old string `json:"old"`
	New string `json:"new"`
	Ref string `json:"ref"`
	// ObjectDir is the quarantine.
	ObjectDir string `json:"object_dir,omitempty"`
	// Options are those of git push -o.
	Options []string `json:"options,omitempty"`
}

func (r *Remote) servePreReceive(w http.ResponseWriter, q *http.Request) {
	request, err := r.readHookRequest(w, q)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Trailer", verdictTrailer)
	out := newFlushWriter(w)
	verdict := verdictAccept
	if err := r.check(q.Context(), request, out); err != nil {
		verdict = verdictRefuse
		if !errors.Is(err, ErrRefused) {
			_, _ = fmt.Fprintf(out, "The push is refused: %v\n", err) // the pusher may have gone
		}
		r.options.Log.Info("push refused", "branch", r.options.Branch, "revision", request.New, "reason", err)
	}
	w.Header().Set(verdictTrailer, verdict)
}

// check refuses what needs no Gate to refuse, and asks the Gate, one push
// after the other.
func (r *Remote) check(ctx context.Context, request hookRequest, out io.Writer) error {
	branch := r.options.Branch
	if request.New == zeroID {
		return fmt.Errorf("%s is the branch that is deployed and cannot be deleted; to remove everything, push a commit without manifests", branch)
	}
	push := Push{Branch: branch, New: request.New, Options: request.Options}
	if request.Old != zeroID {
		push.Old = request.Old
	}
	if request.ObjectDir != "" {
		push.ObjectDirs = []string{request.ObjectDir}
	}
	if !r.checking.TryAcquire(1) {
		_, _ = fmt.Fprintln(out, "waiting for the check of another push") // the check itself notices a pusher who has gone
		if err := r.checking.Acquire(ctx, 1); err != nil {
			return fmt.Errorf("nobody waits for the check any more: %w", err)
		}
	}
	defer r.checking.Release(1)
	forward, err := r.fastForward(ctx, push)
	if err != nil {
		return err
	}
	if !forward {
		return fmt.Errorf("%s would be rewritten: what is deployed now is not part of the pushed history; run git pull --rebase, or git revert what should go, and push again", branch)
	}
	return r.options.Gate.Check(ctx, push, out)
}

// fastForward reports whether the branch keeps its history.
func (r *Remote) fastForward(ctx context.Context, push Push) (bool, error) {
	if push.Old == "" {
		return true, nil
	}
	command := exec.CommandContext(ctx, r.git, "--git-dir", r.options.Dir, "merge-base", "--is-ancestor", push.Old, push.New)
	command.Env = append(gitEnvironment(), "GIT_ALTERNATE_OBJECT_DIRECTORIES="+alternates(push.ObjectDirs))
	output, err := command.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return true, nil
	case errors.As(err, &exit) && exit.ExitCode() == 1:
		return false, nil
	}
	return false, fmt.Errorf("compare %s with %s: %w: %s", push.New, push.Old, err, strings.TrimSpace(string(output)))
}

// alternates lists directories as Git reads them; one with a colon is quoted.
func alternates(dirs []string) string {
	quoted := make([]string, len(dirs))
	for i, dir := range dirs {
		quoted[i] = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(dir) + `"`
	}
	return strings.Join(quoted, ":")
}

func (r *Remote) servePostReceive(w http.ResponseWriter, q *http.Request) {
	request, err := r.readHookRequest(w, q)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if request.New == zeroID || noWait(request.Options) {
		return
	}
	out := newFlushWriter(w)
	err = r.options.Gate.Follow(q.Context(), request.New, out)
	switch {
	case q.Context().Err() != nil:
		r.options.Log.Debug("nobody watches the push any more", "revision", request.New)
	case err != nil:
		_, _ = fmt.Fprintf(out, "Nothing more can be said about the rollout: %v\n", err)
		r.options.Log.Warn("watch of a push ended", "revision", request.New, "error", err)
	}
}

// noWait reports whether a push option switches watching off; the last wins.
func noWait(options []string) bool {
	off := false
	for _, option := range options {
		if value, ours := strings.CutPrefix(option, "tally.wait="); ours {
			off = slices.Contains([]string{"false", "no", "off", "0"}, strings.ToLower(value))
		}
	}
	return off
}

// readHookRequest reads and checks what a hook says. Who may push is in the
// group that reaches the socket, but that gives no right to have the server
// read any directory of the machine.
func (r *Remote) readHookRequest(w http.ResponseWriter, q *http.Request) (hookRequest, error) {
	var request hookRequest
	decoder := json.NewDecoder(http.MaxBytesReader(w, q.Body, maxHookRequest))
	if err := decoder.Decode(&request); err != nil {
		return request, fmt.Errorf("hook request: %w", err)
	}
	switch {
	case request.Ref != r.ref():
		return request, fmt.Errorf("hook request: %q is not the followed branch %q", request.Ref, r.ref())
	case !isID(request.Old) || !isID(request.New):
		return request, fmt.Errorf("hook request: %q and %q are not commit ids", request.Old, request.New)
	case request.ObjectDir == "":
		return request, nil
	}
	given, err := filepath.EvalSymlinks(request.ObjectDir)
	if err != nil {
		return request, fmt.Errorf("hook request: %w", err)
	}
	objects, err := filepath.EvalSymlinks(filepath.Join(r.options.Dir, "objects"))
	if err != nil {
		return request, fmt.Errorf("hook request: %w", err)
	}
	if given != objects && filepath.Dir(given) != objects {
		return request, fmt.Errorf("hook request: %s is no quarantine of this repository", request.ObjectDir)
	}
	return request, nil
}

func isID(text string) bool {
	return len(text) == len(zeroID) && strings.Trim(text, "0123456789abcdef") == ""
}
