package status

import (
	"bufio"
	"errors"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/status/report"
)

const (
	// logLines are shown unless the address asks for another number, at most maxLogLines.
	logLines    = 500
	maxLogLines = 5000
	// maxLogBytes bounds what a page shows; the newest is kept.
	maxLogBytes = 2 << 20
)

// colours matches what programs write to colour a terminal.
var colours = regexp.MustCompile(`\x1b\[[0-9;?]*[A-Za-z]`)

// logDetail is a page with a container's log.
type logDetail struct {
	Pod        desired.Key
	Containers []string
	Container  string
	Previous   bool
	Tail       int
	Lines      string
	Error      string
	// Stream is where the page's script reads on.
	Stream string
}

// logPage shows the end of a log. It is read once; with a script the page
// reads on by itself.
func (s *Server) logPage(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	d := logDetail{
		Pod:       desired.Key{Kind: "Pod", Namespace: r.PathValue("namespace"), Name: r.PathValue("pod")},
		Container: q.Get("container"), Previous: q.Get("previous") == "true", Tail: logLines,
	}
	if n, err := strconv.Atoi(q.Get("tail")); err == nil && n > 0 {
		d.Tail = min(n, maxLogLines)
	}
	o := s.cluster.Overview()
	d.Containers = containers(o, d.Pod)
	if d.Container == "" && len(d.Containers) > 0 {
		d.Container = d.Containers[len(d.Containers)-1]
	}
	log, err := s.logs(r.Context(), d.Pod.Namespace, d.Pod.Name, d.Container, LogOptions{Tail: d.Tail, Previous: d.Previous})
	if err == nil {
		d.Lines, err = lastBytes(log, maxLogBytes)
		d.Lines = colours.ReplaceAllString(d.Lines, "")
		log.Close()
	}
	v := &view{Title: "Log of " + d.Pod.Name + " · Tallyman", Verdict: report.Judge(o)}
	if err != nil {
		d.Error = err.Error()
		v.Code = logStatus(err)
	} else if !d.Previous {
		d.Stream = "/api/v1/logs?" + url.Values{
			"namespace": {d.Pod.Namespace}, "pod": {d.Pod.Name}, "container": {d.Container},
			"follow": {"true"}, "tail": {strconv.Itoa(d.Tail)},
		}.Encode()
	}
	v.Groups = []group{strip(o, "Log of "+d.Pod.Name), {Class: "single log", Fragments: []fragment{{"log", d}}}}
	s.write(w, v, nil, "")
}

func containers(o *nodes.Overview, pod desired.Key) []string {
	var names []string
	for i := range o.Objects {
		if object := &o.Objects[i]; object.Key == pod && object.Pod != nil {
			for _, c := range object.Pod.Status.Init {
				names = append(names, c.Name)
			}
			for _, c := range object.Pod.Status.Containers {
				names = append(names, c.Name)
			}
		}
	}
	return names
}

// lastBytes reads to the end and keeps at most the last n bytes, whole lines.
func lastBytes(r io.Reader, n int) (string, error) {
	var kept []byte
	reader := bufio.NewReaderSize(r, 64<<10)
	for {
		line, err := reader.ReadSlice('\n')
		kept = append(kept, line...)
		if len(kept) > 2*n {
			kept = append([]byte(nil), kept[len(kept)-n:]...)
		}
		if err == nil || errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if len(kept) > n {
			kept = kept[len(kept)-n:]
			if _, rest, found := strings.Cut(string(kept), "\n"); found {
				kept = []byte(rest)
			}
		}
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return strings.ToValidUTF8(string(kept), "\ufffd"), err
	}
}
