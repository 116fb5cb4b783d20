package gitrepo

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tallyman-dev/tallyman/desired"
)

// Back-off after a failed look: it doubles from first to last, and a poke or
// a change on disk cuts it short.
const (
	firstRetry = time.Second
	lastRetry  = 2 * time.Minute
)

// Run follows the branch until ctx ends and tells Heads what every look found.
// It returns nil when ctx has ended.
func (r *Repository) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		if err := r.source.watch(ctx, r.Poke); err != nil {
			r.options.Log.Warn("changes on disk are noticed by polling only", "error", err)
		}
		return nil
	})
	group.Go(func() error { return r.follow(ctx) })
	return group.Wait()
}

func (r *Repository) follow(ctx context.Context) error {
	previous := Head{Revision: desired.Revision{SHA: r.source.known()}}
	for failures := 0; ; {
		head := r.look(ctx, previous)
		if ctx.Err() != nil {
			return nil
		}
		if failures++; head.Err == nil {
			failures = 0
		}
		delay := r.delay(failures)
		head.Next = time.Now().Add(delay)
		r.report(previous, head, delay)
		r.publish(head)
		previous = head

		timer := time.NewTimer(delay)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-r.poke:
		}
		timer.Stop()
	}
}

// look asks the source where the branch is and compares it with before.
func (r *Repository) look(ctx context.Context, previous Head) Head {
	head := Head{Revision: previous.Revision, Fetched: previous.Fetched}
	sha, err := r.source.look(ctx)
	if err != nil {
		head.Err = err
		if answered(err) {
			head.Fetched = time.Now()
		}
		return head
	}
	head.Fetched = time.Now()
	if sha == previous.Revision.SHA && previous.Err == nil && !previous.Fetched.IsZero() {
		return head
	}
	revision, err := r.view.Revision(ctx, sha)
	if err != nil {
		head.Err = err
		return head
	}
	head.Revision = revision
	if before := previous.Revision.SHA; before != "" && before != sha {
		descends, err := r.view.Descends(ctx, before, sha)
		if err != nil {
			return Head{Revision: previous.Revision, Fetched: head.Fetched, Err: err}
		}
		head.Previous, head.Rewritten = before, !descends
	}
	return head
}

// answered tells an error about what the repository holds from one about
// reaching it.
func answered(err error) bool {
	return errors.Is(err, ErrEmpty) || errors.Is(err, ErrNoBranch) || errors.Is(err, ErrNoPath)
}

// delay is the time to the next look after a number of failures in a row.
func (r *Repository) delay(failures int) time.Duration {
	delay := r.options.Interval
	if failures > 0 {
		delay = min(firstRetry<<min(failures-1, 10), max(lastRetry, r.options.Interval))
	}
	const tenths = 5 // a tenth less to a tenth more
	return delay - delay/(2*tenths) + rand.N(delay/tenths+1)
}

// report says in the log what is new about head.
func (r *Repository) report(previous, head Head, delay time.Duration) {
	log := r.options.Log.With("repo", Redact(r.options.URL), "branch", r.options.Branch)
	switch {
	case head.Err != nil:
		log.Warn("repository cannot be read; the last good revision stays in force", "error", head.Err, "retry_in", delay)
	case head.Rewritten:
		log.Warn("branch was rewritten", "previous", head.Previous, "revision", head.Revision.SHA)
	case head.Revision.SHA != previous.Revision.SHA:
		log.Info("branch moved", "previous", head.Previous, "revision", head.Revision.SHA, "subject", head.Revision.Subject())
	case previous.Err != nil:
		log.Info("repository answers again", "revision", head.Revision.SHA)
	default:
		log.Debug("nothing new", "revision", head.Revision.SHA)
	}
}

// publish puts head in the place of one that nobody has read. Only follow
// calls it.
func (r *Repository) publish(head Head) {
	select {
	case unread := <-r.heads:
		head = head.after(unread)
	default:
	}
	r.heads <- head // there is room: nobody else sends
}

// after takes over from a head that nobody read what would be lost with it.
func (h Head) after(unread Head) Head {
	if unread.Previous == "" {
		return h
	}
	h.Rewritten = h.Rewritten || unread.Rewritten
	h.Previous = unread.Previous
	return h
}
