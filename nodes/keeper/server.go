package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/proxy/dns"
)

// protocol is the version of what is spoken on the socket; it is the first
// part of every path, so that a keeper and an agent of different age notice.
const protocol = "/v1"

// maxRequest bounds a request; a route table of 5,000 services takes some 3 MiB.
const maxRequest = 64 << 20

// hello is how a keeper introduces itself. Binary tells what runs and how it
// was told to.
type hello struct {
	PID    int    `json:"pid"`
	Binary string `json:"binary"`
}

// ofCommand adds to a binary's identity what it was started with.
func ofCommand(binary string, args []string) string {
	return strings.Join(append([]string{binary}, args[1:]...), " ")
}

// armRequest asks for fences until Ends.
type armRequest struct {
	Ends   time.Duration `json:"ends"`
	Fences []Fence       `json:"fences"`
}

// handler serves the socket. alive ends, and with it the answer to /alive,
// when the keeper does.
func (s *server) handler(alive context.Context) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+protocol+"/hello", func(w http.ResponseWriter, _ *http.Request) {
		binary, err := identity("/proc/self/exe")
		answer(w, hello{os.Getpid(), ofCommand(binary, os.Args)}, err)
	})
	mux.HandleFunc("GET "+protocol+"/alive", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		select {
		case <-alive.Done():
		case <-r.Context().Done():
		}
	})
	mux.HandleFunc("POST "+protocol+"/logs", func(w http.ResponseWriter, r *http.Request) {
		var l Log
		if !decode(w, r, &l) {
			return
		}
		pipes, err := s.logs.open(l)
		answer(w, pipes, err)
	})
	mux.HandleFunc("DELETE "+protocol+"/logs/{id}", func(w http.ResponseWriter, r *http.Request) {
		answer(w, struct{}{}, s.logs.close(r.PathValue("id")))
	})
	mux.HandleFunc("PUT "+protocol+"/dns", s.putDNS)
	mux.HandleFunc("GET "+protocol+"/fences", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, s.fences.list(), nil)
	})
	mux.HandleFunc("PUT "+protocol+"/fences", func(w http.ResponseWriter, r *http.Request) {
		var wanted armRequest
		if decode(w, r, &wanted) {
			answer(w, struct{}{}, s.fences.arm(wanted.Ends, wanted.Fences))
		}
	})
	mux.HandleFunc("POST "+protocol+"/unfence", func(w http.ResponseWriter, r *http.Request) {
		var pods []nodes.UID
		if decode(w, r, &pods) {
			answer(w, struct{}{}, s.fences.drop(pods))
		}
	})
	mux.HandleFunc("POST "+protocol+"/stop", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, struct{}{}, nil)
		s.end()
	})
	mux.HandleFunc("POST "+protocol+"/replace", s.putReplacement)
	return mux
}

func (s *server) putReplacement(w http.ResponseWriter, r *http.Request) {
	var next replacement
	if !decode(w, r, &next) {
		return
	}
	if len(next.Args) == 0 {
		answer(w, nil, errors.New("no arguments"))
		return
	}
	if _, err := os.Stat(next.Path); err != nil {
		answer(w, nil, err)
		return
	}
	answer(w, struct{}{}, nil)
	s.succeed(next)
}

// putDNS serves a new table and keeps it for the keeper's own next start.
func (s *server) putDNS(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	if err == nil {
		err = s.setDNS(body)
	}
	if err == nil {
		err = writeFile(s.dnsFile(), body)
	}
	answer(w, struct{}{}, err)
}

func (s *server) setDNS(encoded []byte) error {
	var d DNS
	if err := json.Unmarshal(encoded, &d); err != nil {
		return fmt.Errorf("read the DNS table: %w", err)
	}
	s.health.Set(d.Table, d.Node)
	return s.dns.Set(dns.Config{Table: d.Table, Listen: d.Listen, Forwarders: d.Forwarders})
}

func (s *server) dnsFile() string { return filepath.Join(dir(s.runDir), "dns.json") }

// restoreDNS serves the table of an earlier keeper; without one there is
// nothing to serve yet.
func (s *server) restoreDNS() {
	encoded, err := os.ReadFile(s.dnsFile())
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	if err == nil {
		err = s.setDNS(encoded)
	}
	if err != nil {
		s.log.Warn("names not served as before until the agent returns", "error", err)
	}
}

func decode(w http.ResponseWriter, r *http.Request, to any) bool {
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest)).Decode(to); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return false
	}
	return true
}

func answer(w http.ResponseWriter, value any, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(value) // the client notices a broken connection itself
}

// writeFile replaces a file whole or not at all.
func writeFile(path string, content []byte) error {
	temporary := path + ".new"
	if err := os.WriteFile(temporary, content, 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}
