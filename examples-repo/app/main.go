// Command hello is the example program: a small web server that shows how
// configuration, secrets, probes, kept data and calls between services look from
// inside a container. It reads everything from its environment and a few files,
// and closes gracefully when it is told to stop. "hello ask URL" asks another
// one instead, prints its answer and ends.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// settings come from the manifest; every one has a default, so that the
// program also runs by hand.
type settings struct {
	listen   string  // LISTEN, ":8080"
	greeting string  // GREETING
	upstream string  // UPSTREAM: addresses, separated by spaces, whose answers are passed on
	pod      string  // POD_NAME
	signFile string  // SIGNATURE_FILE: a mounted Secret, read at every request
	motdFile string  // MOTD_FILE: a mounted ConfigMap, read at every request
	visits   *visits // VISITS_FILE: when set, requests are counted in that file
}

func main() {
	s := settings{
		listen:   getenv("LISTEN", ":8080"),
		greeting: getenv("GREETING", "Hello"),
		upstream: os.Getenv("UPSTREAM"),
		pod:      getenv("POD_NAME", "here"),
		signFile: os.Getenv("SIGNATURE_FILE"),
		motdFile: os.Getenv("MOTD_FILE"),
	}
	if file := os.Getenv("VISITS_FILE"); file != "" {
		s.visits = &visits{file: file}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if len(os.Args) == 3 && os.Args[1] == "ask" {
		if err := ask(ctx, os.Args[2], os.Stdout); err != nil {
			slog.Error("nobody to ask", "error", err)
			os.Exit(1)
		}
		return
	}
	if err := run(ctx, s); err != nil {
		slog.Error("hello ends", "error", err)
		os.Exit(1)
	}
}

// run serves until ctx ends, then lets open requests finish.
func run(ctx context.Context, s settings) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /", s.greet)
	server := &http.Server{Addr: s.listen, Handler: mux, ReadHeaderTimeout: 5 * time.Second}

	done := make(chan error, 1)
	go func() { done <- server.ListenAndServe() }()
	slog.Info("hello serves", "listen", s.listen, "upstream", s.upstream)
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	closing, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := server.Shutdown(closing); err != nil {
		return err
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (s settings) greet(w http.ResponseWriter, r *http.Request) {
	switch {
	case s.upstream != "":
		s.forward(w, r)
		return
	case s.visits != nil:
		s.count(w)
		return
	}
	fmt.Fprintf(w, "%s from %s\n", s.greeting, s.pod)
	if motd := readLine(s.motdFile); motd != "" {
		fmt.Fprintln(w, motd)
	}
	if signature := readLine(s.signFile); signature != "" {
		fmt.Fprintf(w, "signed with a secret of %d characters\n", len(signature))
	}
}

// forward asks the other services by their names and passes their answers on.
func (s settings) forward(w http.ResponseWriter, r *http.Request) {
	var heard bytes.Buffer
	for address := range strings.FieldsSeq(s.upstream) {
		if err := ask(r.Context(), address, &heard); err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
	}
	fmt.Fprintf(w, "%s, says %s, heard:\n", s.greeting, s.pod)
	heard.WriteTo(w)
}

// ask writes what an address answers.
func ask(ctx context.Context, address string, to io.Writer) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", address, answer.Status)
	}
	_, err = io.Copy(to, io.LimitReader(answer.Body, 64<<10))
	return err
}

// count answers with the number of this visit.
func (s settings) count(w http.ResponseWriter) {
	n, err := s.visits.next()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprintf(w, "visit %d, kept by %s\n", n, s.pod)
}

// readLine gives the first line of a file, or nothing.
func readLine(path string) string {
	if path == "" {
		return ""
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(content), "\n")
	return line
}

func getenv(name, otherwise string) string {
	if value, set := os.LookupEnv(name); set {
		return value
	}
	return otherwise
}
