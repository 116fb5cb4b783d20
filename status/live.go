package status

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"net/http"
	"sync"
	"time"

	template "github.com/DataDog/datadog-agent/pkg/template/html"

	"github.com/tallyman-dev/tallyman/nodes"
)

const (
	// calm is the least time between two updates of one page: faster is only flicker.
	calm = 200 * time.Millisecond
	// share is how much longer than showing an overview the pause after it is, and
	// longest that pause: what 150,000 pods do is megabytes each time.
	share   = 9
	longest = 5 * time.Second
	// maxRenderings bounds how many addresses are remembered for one overview.
	maxRenderings = 64
)

// update is what a page is sent when something changed.
type update struct {
	Title string `json:"title"`
	Level string `json:"level"`
	// Say is for screen readers.
	Say string `json:"say"`
	// Fragments are the new contents of those that changed, by id, and Order
	// the ids of all, in the order of the page.
	Fragments map[string]template.HTML `json:"fragments"`
	Order     []string                 `json:"order"`
}

// renderings are the fragments of pages for the newest overview, made once
// for all that look.
type renderings struct {
	// instance tells the serials of this process from those of others.
	instance string

	mu sync.Mutex
	// guarded by mu
	serial uint64
	byURI  map[string]*update
}

func newRenderings() *renderings { return &renderings{instance: rand.Text()[:8]} }

// id names an overview to clients.
func (r *renderings) id(o *nodes.Overview) string { return fmt.Sprintf("%s-%d", r.instance, o.Serial) }

// get gives the rendering of one address, made by render if need be.
func (r *renderings) get(uri string, o *nodes.Overview, render func() (*update, error)) (*update, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.serial != o.Serial || r.byURI == nil || len(r.byURI) >= maxRenderings {
		r.serial, r.byURI = o.Serial, map[string]*update{}
	}
	if u := r.byURI[uri]; u != nil {
		return u, nil
	}
	u, err := render()
	if err == nil {
		r.byURI[uri] = u
	}
	return u, err
}

// live streams what changes on a page: once for every new overview, only the
// fragments that differ from what this client has.
func (s *Server) live(page pageFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		since := r.Header.Get("Last-Event-ID")
		if since == "" {
			since = r.URL.Query().Get("since")
		}
		stream := newEventStream(w)
		has := map[string]template.HTML{}
		for o := range overviews(r.Context(), s.cluster, calm) {
			whole, err := s.renderings.get(r.URL.Path+"?"+withoutSince(r), o, func() (*update, error) { return s.pages.update(page(o, r)) })
			if err != nil {
				s.log.Error("page not rendered", "path", r.URL.Path, "error", err)
				return
			}
			id := s.renderings.id(o)
			change := whole.against(has)
			maps.Copy(has, whole.Fragments)
			if id == since {
				// The page was rendered from this very overview.
				since = ""
				continue
			}
			since = ""
			if len(change.Fragments) == 0 {
				continue
			}
			body, err := json.Marshal(change)
			if err != nil || stream.send("update", id, body) != nil {
				return
			}
		}
	}
}

// against leaves only the fragments that differ from those in has.
func (u *update) against(has map[string]template.HTML) update {
	change := *u
	change.Fragments = map[string]template.HTML{}
	for id, content := range u.Fragments {
		if before, found := has[id]; !found || before != content {
			change.Fragments[id] = content
		}
	}
	return change
}

func withoutSince(r *http.Request) string {
	q := r.URL.Query()
	q.Del("since")
	return q.Encode()
}

// overviews yields what Watch does until ctx ends, with a pause of least after
// each and longer after one that took long.
func overviews(ctx context.Context, c Cluster, least time.Duration) iter.Seq[*nodes.Overview] {
	return func(yield func(*nodes.Overview) bool) {
		watch := c.Watch(ctx)
		for {
			select {
			case <-ctx.Done():
				return
			case o, open := <-watch:
				begun := time.Now()
				if !open || !yield(o) || !pause(ctx, max(least, min(share*time.Since(begun), longest))) {
					return
				}
			}
		}
	}
}

// pause reports whether ctx lives on after d.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
