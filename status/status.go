// Package status shows what runs against what should: a web page that keeps
// itself up to date, the JSON behind it, metrics and health.
//
// Guarantees: it is read only, every path answers GET and HEAD and nothing
// else. Nothing from a repository or a node reaches a page unescaped, and the
// page may load nothing but its own two files (see secure). While nobody looks
// it does nothing; while people look it renders a change once for all of them.
//
// It does not decide who may look (package access does), and holds no state
// but the newest renderings.
package status

import (
	"context"
	"embed"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/status/access"
)

// Cluster is what there is to show.
type Cluster interface {
	// Overview is the newest one, immutable, never nil.
	Overview() *nodes.Overview
	// Watch yields overviews until ctx ends; when the reader is slow, only the newest.
	Watch(ctx context.Context) <-chan *nodes.Overview
	// Events of one object, the oldest first.
	Events(object desired.Key) []nodes.Event
}

// LogOptions say which part of a log to read.
type LogOptions struct {
	// Follow goes on until the container has ended; Previous asks for the run
	// before the current one; Timestamps puts the time before each line.
	Follow, Previous, Timestamps bool
	// Tail is the number of lines from the end to begin with; negative means all.
	Tail int
	// Since leaves out older lines when not zero.
	Since time.Time
}

// LogReader reads a container's log; container may be empty when the pod has
// only one. An error that wraps fs.ErrNotExist means that there is no such log.
type LogReader func(ctx context.Context, namespace, pod, container string, o LogOptions) (io.ReadCloser, error)

// Options for New. All but Access, Discovery and Keys are needed.
type Options struct {
	Cluster Cluster
	Logs    LogReader
	// Access guards Handler; nil leaves it open, for tests and for the socket only.
	Access   *access.Control
	Gatherer prometheus.Gatherer
	// Discovery makes the OIDC discovery document of an issuer whose key set is
	// at a URL, Keys that key set; both nil where no tokens are signed.
	Discovery func(issuer, keys string) ([]byte, error)
	Keys      func() ([]byte, error)
	// Version of Tallyman.
	Version string
	// Ready returns why the server can't serve yet, or nil.
	Ready func() error
	Log   *slog.Logger
}

// Server is the outward, read-only side of Tallyman. Safe for concurrent use.
type Server struct {
	cluster Cluster
	logs    LogReader
	access  *access.Control
	metrics prometheus.Gatherer
	version string
	ready   func() error
	oidc    oidc
	log     *slog.Logger
	pages   *pages

	renderings *renderings
}

//go:embed static templates
var files embed.FS

// New makes a server; it does nothing until its handlers are called.
func New(o Options) (*Server, error) {
	switch {
	case o.Cluster == nil:
		return nil, errors.New("status: no cluster")
	case o.Logs == nil:
		return nil, errors.New("status: no log reader")
	case o.Gatherer == nil:
		return nil, errors.New("status: no metrics")
	case o.Ready == nil:
		return nil, errors.New("status: no readiness")
	case o.Log == nil:
		return nil, errors.New("status: no logger")
	}
	p, err := newPages(files, o.Version)
	if err != nil {
		return nil, err
	}
	return &Server{
		cluster: o.Cluster, logs: o.Logs, access: o.Access, metrics: o.Gatherer,
		version: o.Version, ready: o.Ready, oidc: oidc{o.Discovery, o.Keys}, log: o.Log, pages: p, renderings: newRenderings(),
	}, nil
}

// Handler serves everything to those that Options.Access lets in.
func (s *Server) Handler() http.Handler {
	if s.access == nil {
		return s.SocketHandler()
	}
	return s.access.Wrap(s.SocketHandler())
}

// SocketHandler serves everything to everyone: for the unix socket, which goes
// by file permissions.
func (s *Server) SocketHandler() http.Handler {
	mux := http.NewServeMux()
	for pattern, page := range map[string]pageFunc{
		"/{$}": s.index, "/workloads": s.workloads, "/services": s.services, "/storage": s.storage, "/objects": s.objects, "/history": s.history,
		"/object/{kind}/{namespace}/{name}": s.object, "/revision/{sha}": s.revision,
	} {
		mux.HandleFunc(pattern, s.page(page))
		mux.HandleFunc("/live"+pattern, s.live(page))
	}
	mux.HandleFunc("/logs/{namespace}/{pod}", s.logPage)
	mux.HandleFunc("/api/v1/overview", s.apiOverview)
	mux.HandleFunc("/api/v1/watch", s.apiWatch)
	mux.HandleFunc("/api/v1/events", s.apiEvents)
	mux.HandleFunc("/api/v1/logs", s.apiLogs)
	mux.Handle("/metrics", promhttp.HandlerFor(s.metrics, promhttp.HandlerOpts{ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelWarn)}))
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { plain(w, http.StatusOK, "ok\n") })
	mux.HandleFunc("/readyz", s.readyz)
	if s.oidc.keys != nil {
		mux.HandleFunc(discoveryPath, s.discovery)
		mux.HandleFunc(keysPath, s.keys)
	}
	static, _ := fs.Sub(files, "static") // the folder is compiled in
	mux.Handle("/static/", http.StripPrefix("/static/", immutable(http.FileServerFS(static))))
	mux.HandleFunc("/", s.notFound)
	return secure(readOnly(mux))
}

// readOnly refuses every method that could be meant to change something.
func readOnly(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			plain(w, http.StatusMethodNotAllowed, "This is read only: what runs is changed by a push to Git.\n")
			return
		}
		h.ServeHTTP(w, r)
	})
}

// secure sets the headers that keep a page to itself.
func secure(h http.Handler) http.Handler {
	policy := strings.Join([]string{
		"default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'", "connect-src 'self'",
		"base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
	}, "; ")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header := w.Header()
		header.Set("Content-Security-Policy", policy)
		header.Set("X-Content-Type-Options", "nosniff")
		header.Set("X-Frame-Options", "DENY")
		header.Set("Referrer-Policy", "no-referrer")
		header.Set("Cross-Origin-Opener-Policy", "same-origin")
		header.Set("Cross-Origin-Resource-Policy", "same-origin")
		header.Set("Cache-Control", "no-store")
		h.ServeHTTP(w, r)
	})
}

// immutable lets browsers keep a file for ever: its address changes with it.
func immutable(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("v") {
			w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
		}
		h.ServeHTTP(w, r)
	})
}

func (s *Server) readyz(w http.ResponseWriter, _ *http.Request) {
	if err := s.ready(); err != nil {
		s.log.Debug("not ready", "reason", err)
		// Whoever asks has shown no token: why is for the log.
		plain(w, http.StatusServiceUnavailable, "not ready\n")
		return
	}
	plain(w, http.StatusOK, "ok\n")
}

func plain(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	_, _ = io.WriteString(w, text)
}
