package containerd

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	goruntime "runtime"
	"strings"

	remoteserrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

var errNoSeek = errors.New("the registry's answer cannot be resumed")

// PullError is why an image could not be pulled, as one sentence.
type PullError struct {
	Ref    string
	Reason string
	// Err is the cause with all its detail.
	Err error
}

// Error is meant for users.
func (e *PullError) Error() string { return fmt.Sprintf("pull %s: %s", e.Ref, e.Reason) }

// Unwrap returns the cause.
func (e *PullError) Unwrap() error { return e.Err }

// explainPull turns a chain of errors from libraries and registries into a sentence.
func explainPull(named reference.Named, err error) error {
	if silent, ok := errors.AsType[*silentError](err); ok {
		reason := fmt.Sprintf("%s has sent nothing for %s", reference.Domain(named), silent.since)
		return &PullError{Ref: reference.FamiliarString(named), Reason: reason, Err: err}
	}
	known := native(err)
	if errdefs.IsUnavailable(known) && strings.Contains(known.Error(), "transport") {
		return &PullError{Ref: reference.FamiliarString(named), Reason: runtime.ErrUnavailable.Error(), Err: fmt.Errorf("%w: %w", runtime.ErrUnavailable, err)}
	}
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("pull %s: %w", reference.FamiliarString(named), err)
	}
	return &PullError{Ref: reference.FamiliarString(named), Reason: pullReason(named, known), Err: known}
}

func pullReason(named reference.Named, err error) string {
	registry := reference.Domain(named)
	text := err.Error()
	var dns *net.DNSError
	var status remoteserrors.ErrUnexpectedStatus
	var authority x509.UnknownAuthorityError
	var network net.Error
	switch {
	case errors.As(err, &dns):
		return fmt.Sprintf("no such host %s", dns.Name)
	case errors.Is(err, unix.ECONNREFUSED):
		return fmt.Sprintf("connection refused by %s", registry)
	case errors.As(err, &authority), strings.Contains(text, "x509:"):
		return fmt.Sprintf("the certificate of %s is not trusted (%s)", registry, lastPart(text, "x509: "))
	case strings.Contains(text, "no match for platform"):
		return fmt.Sprintf("the image is not made for %s/%s", goruntime.GOOS, goruntime.GOARCH)
	case refused(err):
		return fmt.Sprintf("unauthorized: %s wants a login for this image, or another one", registry)
	case errdefs.IsNotFound(err), strings.Contains(text, "manifest unknown"), strings.Contains(text, "404 Not Found"):
		return fmt.Sprintf("manifest unknown: %s has no such image", registry)
	case errors.Is(err, unix.ENOSPC), strings.Contains(text, "no space left"):
		return "no space left on this node's disk"
	case strings.Contains(text, "unexpected commit digest"), strings.Contains(text, "failed size validation"):
		return fmt.Sprintf("%s sent content that does not match its digest", registry)
	case errors.As(err, &status):
		return fmt.Sprintf("%s answered %s", registry, status.Status)
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return fmt.Sprintf("%s does not answer in time", registry)
	}
	return oneLine(text)
}

// refused tells that a registry wants a login, or another one.
func refused(err error) bool {
	if status, ok := errors.AsType[remoteserrors.ErrUnexpectedStatus](err); ok && (status.StatusCode == http.StatusUnauthorized || status.StatusCode == http.StatusForbidden) {
		return true
	}
	text := err.Error()
	return strings.Contains(text, "pull access denied") || strings.Contains(text, "authorization failed") || strings.Contains(text, "401 Unauthorized")
}

// lastPart is what follows the last occurrence of a mark.
func lastPart(text, mark string) string {
	if i := strings.LastIndex(text, mark); i >= 0 {
		text = text[i+len(mark):]
	}
	return oneLine(text)
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

// execReason is what a user can act on when a command could not be started; empty if nothing is recognised.
func execReason(err error) string {
	_, reason, found := strings.Cut(err.Error(), "exec failed: ")
	if !found {
		return ""
	}
	reason = strings.TrimPrefix(reason, "unable to start container process: ")
	return strings.TrimSuffix(reason, ": unknown")
}
