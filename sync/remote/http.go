package remote

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The services of Git's smart protocol.
const (
	uploadPack  = "git-upload-pack"
	receivePack = "git-receive-pack"
)

// graceful is how long Git may take to clean up its locks and its quarantine
// once its client has gone.
const graceful = 10 * time.Second

// serveHTTP runs git http-backend for a request that the smart protocol knows;
// there is no other file to be had. The standard library's CGI handler would
// not do: it refuses chunked bodies, which every push over 1 MiB has, and sends
// nothing before its buffer is full.
func (r *Remote) serveHTTP(w http.ResponseWriter, q *http.Request) {
	path, known := r.backendPath(q)
	if !known {
		http.NotFound(w, q)
		return
	}
	if !r.serving.TryAcquire(1) {
		http.Error(w, "too many Git requests at the same time; try again", http.StatusServiceUnavailable)
		return
	}
	defer r.serving.Release(1)
	if err := r.runBackend(w, q, path); err != nil && q.Context().Err() == nil {
		r.options.Log.Warn("git http-backend", "path", path, "error", err)
	}
}

// backendPath maps a request to the path that http-backend is given.
func (r *Remote) backendPath(q *http.Request) (path string, known bool) {
	name := "/" + filepath.Base(r.options.Dir)
	if q.URL.RawPath != "" {
		return "", false // an escaped slash or the like: no Git client sends one
	}
	path, ours := strings.CutPrefix(q.URL.Path, name)
	if !ours {
		return "", false
	}
	switch path {
	case "/info/refs":
		service := q.URL.Query().Get("service")
		known = q.Method == http.MethodGet && (service == uploadPack || service == receivePack)
	case "/" + uploadPack, "/" + receivePack:
		known = q.Method == http.MethodPost && q.Header.Get("Content-Type") == "application/x-"+path[1:]+"-request"
	}
	return name + path, known
}

func (r *Remote) runBackend(w http.ResponseWriter, q *http.Request, path string) error {
	command := exec.CommandContext(q.Context(), r.git, "http-backend")
	command.Env = r.backendEnvironment(q, path)
	command.Stdin = http.MaxBytesReader(w, q.Body, maxPush+1<<20)
	// When the client goes, Git and its hooks are asked to end, not killed: a
	// killed Git leaves its lock on the branch behind.
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	command.Cancel = func() error { return syscall.Kill(-command.Process.Pid, syscall.SIGTERM) }
	command.WaitDelay = graceful
	complaints := &excerpt{limit: 4 << 10}
	command.Stderr = complaints
	output, err := command.StdoutPipe()
	if err != nil {
		return err
	}
	if err := command.Start(); err != nil {
		http.Error(w, "git cannot be started", http.StatusInternalServerError)
		return err
	}
	relayErr := relay(w, output)
	if relayErr != nil {
		_ = command.Cancel() // it may be gone already
	}
	if err := errors.Join(command.Wait(), relayErr); err != nil {
		return fmt.Errorf("%w: %s", err, complaints)
	}
	return nil
}

func (r *Remote) backendEnvironment(q *http.Request, path string) []string {
	environment := append(
		gitEnvironment(),
		"GIT_PROJECT_ROOT="+filepath.Dir(r.options.Dir),
		"GIT_HTTP_EXPORT_ALL=1",
		"GATEWAY_INTERFACE=CGI/1.1",
		"PATH_INFO="+path,
		"REQUEST_METHOD="+q.Method,
		"QUERY_STRING="+q.URL.RawQuery,
		"CONTENT_TYPE="+q.Header.Get("Content-Type"),
		"REMOTE_USER=tally",
		"REMOTE_ADDR="+q.RemoteAddr,
	)
	if q.ContentLength >= 0 {
		environment = append(environment, "CONTENT_LENGTH="+strconv.FormatInt(q.ContentLength, 10))
	}
	for header, variable := range map[string]string{
		"Content-Encoding": "HTTP_CONTENT_ENCODING",
		"Git-Protocol":     "HTTP_GIT_PROTOCOL",
	} {
		if value := q.Header.Get(header); value != "" {
			environment = append(environment, variable+"="+value)
		}
	}
	return environment
}

// relay copies a CGI response, each piece as it comes.
func relay(w http.ResponseWriter, output io.Reader) error {
	reader := bufio.NewReaderSize(output, 64<<10)
	header, err := textproto.NewReader(reader).ReadMIMEHeader()
	if err != nil {
		http.Error(w, "git gave no answer", http.StatusBadGateway)
		return fmt.Errorf("read header: %w", err)
	}
	status := http.StatusOK
	if text := header.Get("Status"); text != "" {
		code, _, _ := strings.Cut(text, " ")
		if status, err = strconv.Atoi(code); err != nil || status < 200 || status > 599 {
			http.Error(w, "git gave no answer", http.StatusBadGateway)
			return fmt.Errorf("status %q", text)
		}
	}
	header.Del("Status")
	for name, values := range header {
		w.Header()[name] = values
	}
	w.WriteHeader(status)
	// Writing to a flusher, io.Copy passes on every read of the pipe.
	_, err = io.Copy(newFlushWriter(w), struct{ io.Reader }{reader})
	return err
}

// flushWriter sends every write at once, where the connection can.
type flushWriter struct {
	writer io.Writer
	flush  func() error
}

func newFlushWriter(w http.ResponseWriter) *flushWriter {
	return &flushWriter{writer: w, flush: http.NewResponseController(w).Flush}
}

func (f *flushWriter) Write(b []byte) (int, error) {
	n, err := f.writer.Write(b)
	if err != nil {
		return n, err
	}
	if err := f.flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return n, err
	}
	return n, nil
}

// excerpt keeps the first bytes written to it and forgets the rest.
type excerpt struct {
	limit int
	kept  []byte
}

func (e *excerpt) Write(b []byte) (int, error) {
	e.kept = append(e.kept, b[:min(len(b), e.limit-len(e.kept))]...)
	return len(b), nil
}

func (e *excerpt) String() string { return strings.TrimSpace(string(e.kept)) }
