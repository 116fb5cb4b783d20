package status

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// writeTimeout is how long a reader may take to accept what we send at once.
const writeTimeout = 15 * time.Second

func (s *Server) apiOverview(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if err := writeOverview(w, s.cluster.Overview()); err != nil {
		s.log.Warn("overview not sent", "error", err)
	}
}

// writeOverview encodes one object at a time: in one piece, 150,000 pods are
// hundreds of megabytes, of which the encoder keeps a copy.
func writeOverview(to io.Writer, o *nodes.Overview) error {
	rest := struct {
		*nodes.Overview
		Objects []nodes.ObjectHealth `json:"objects,omitempty"` // none: in place of the overview's
	}{Overview: o}
	head, err := json.Marshal(rest)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(to)
	w.Write(head[:len(head)-1])
	w.WriteString(`,"objects":[`)
	for i := range o.Objects {
		if i > 0 {
			w.WriteByte(',')
		}
		object, err := json.Marshal(&o.Objects[i])
		if err != nil {
			return err
		}
		w.Write(object)
	}
	w.WriteString("]}\n")
	return w.Flush()
}

// apiEvents answers /api/v1/events?kind=…&namespace=…&name=…&group=….
func (s *Server) apiEvents(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	key := desired.Key{Group: q.Get("group"), Kind: q.Get("kind"), Namespace: q.Get("namespace"), Name: q.Get("name")}
	if key.Kind == "" || key.Name == "" {
		plain(w, http.StatusBadRequest, "kind and name are needed\n")
		return
	}
	events := s.cluster.Events(key)
	if events == nil {
		events = []nodes.Event{}
	}
	s.writeJSON(w, events)
}

func (s *Server) writeJSON(w http.ResponseWriter, value any) {
	body, err := json.Marshal(value)
	if err != nil {
		s.log.Error("answer not encoded", "error", err)
		plain(w, http.StatusInternalServerError, "the answer can't be encoded\n")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(body, '\n'))
}

// apiWatch streams overviews as server-sent events, each with its serial as
// id; a slow reader gets only the newest.
func (s *Server) apiWatch(w http.ResponseWriter, r *http.Request) {
	stream := newEventStream(w)
	for o := range overviews(r.Context(), s.cluster, 0) {
		body, err := json.Marshal(o)
		if err != nil {
			s.log.Error("overview not encoded", "error", err)
			return
		}
		if stream.send("overview", strconv.FormatUint(o.Serial, 10), body) != nil {
			return
		}
	}
}

// eventStream writes server-sent events.
type eventStream struct {
	w       http.ResponseWriter
	control *http.ResponseController
}

func newEventStream(w http.ResponseWriter) *eventStream {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no")
	s := &eventStream{w: w, control: http.NewResponseController(w)}
	// The first bytes tell the client that it is connected.
	_ = s.write("retry: 2000\n\n")
	return s
}

// send writes one event; data must be one line, as JSON is.
func (s *eventStream) send(event, id string, data []byte) error {
	return s.write(fmt.Sprintf("event: %s\nid: %s\ndata: %s\n\n", event, id, data))
}

// write gives up on a reader that accepts nothing for writeTimeout.
func (s *eventStream) write(text string) error {
	// A transport without deadlines (in tests) can't be stalled either.
	_ = s.control.SetWriteDeadline(time.Now().Add(writeTimeout))
	if _, err := io.WriteString(s.w, text); err != nil {
		return err
	}
	return s.control.Flush()
}

// apiLogs answers /api/v1/logs?namespace=…&pod=…&container=… with follow,
// previous, timestamps (true), tail (lines) and since (RFC 3339 or a duration).
func (s *Server) apiLogs(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	options, err := logOptions(q, time.Now())
	if err != nil {
		plain(w, http.StatusBadRequest, err.Error()+"\n")
		return
	}
	if q.Get("pod") == "" {
		plain(w, http.StatusBadRequest, "pod is needed\n")
		return
	}
	namespace := q.Get("namespace")
	if namespace == "" {
		namespace = "default"
	}
	log, err := s.logs(r.Context(), namespace, q.Get("pod"), q.Get("container"), options)
	if err != nil {
		plain(w, logStatus(err), err.Error()+"\n")
		return
	}
	defer log.Close()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(http.StatusOK)
	s.copyLog(w, log)
}

// copyLog hands on what there is as soon as it is there.
func (s *Server) copyLog(w http.ResponseWriter, log io.Reader) {
	control := http.NewResponseController(w)
	_ = control.Flush()
	buffer := make([]byte, 32<<10)
	for {
		n, err := log.Read(buffer)
		if n > 0 {
			_ = control.SetWriteDeadline(time.Now().Add(writeTimeout))
			if _, err := w.Write(buffer[:n]); err != nil {
				return
			}
			_ = control.Flush()
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				s.log.Debug("log ended early", "error", err)
			}
			return
		}
	}
}

func logStatus(err error) int {
	if errors.Is(err, fs.ErrNotExist) {
		return http.StatusNotFound
	}
	return http.StatusBadGateway
}

func logOptions(q url.Values, now time.Time) (LogOptions, error) {
	o := LogOptions{Tail: -1}
	for name, field := range map[string]*bool{"follow": &o.Follow, "previous": &o.Previous, "timestamps": &o.Timestamps} {
		if !q.Has(name) {
			continue
		}
		value, err := strconv.ParseBool(q.Get(name))
		if err != nil {
			return o, fmt.Errorf("%s must be true or false", name)
		}
		*field = value
	}
	if q.Has("tail") {
		tail, err := strconv.Atoi(q.Get("tail"))
		if err != nil {
			return o, errors.New("tail must be a number of lines")
		}
		o.Tail = tail
	}
	if since := q.Get("since"); since != "" {
		if d, err := time.ParseDuration(since); err == nil {
			o.Since = now.Add(-d)
		} else if o.Since, err = time.Parse(time.RFC3339Nano, since); err != nil {
			return o, errors.New("since must be a duration such as 10m, or a time such as 2006-01-02T15:04:05Z")
		}
	}
	return o, nil
}
