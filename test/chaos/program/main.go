// Command program is what containers of the chaos tests run: a web server that
// closes gracefully, may be told to be unready, and writes numbered lines
// without a pause that anybody could hide a lost one in. Given a file, it is a
// Job's work instead, which tells the file of its beginning and its end.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if len(os.Args) > 1 {
		if err := work(os.Args[1]); err != nil {
			slog.Error("the work ends", "error", err)
			os.Exit(1)
		}
		return
	}
	if every, err := strconv.Atoi(os.Getenv("LINES_EVERY_MS")); err == nil {
		go write(time.Duration(every) * time.Millisecond)
	}
	if err := serve(ctx); err != nil {
		slog.Error("the program ends", "error", err)
		os.Exit(1)
	}
}

// work takes a moment, and is noted at both ends.
func work(file string) error {
	for _, what := range []string{"begins", "ends"} {
		f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(f, "%s %s\n", what, os.Getenv("POD_NAME")); err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
		if what == "begins" {
			time.Sleep(400 * time.Millisecond)
		}
	}
	return nil
}

// lines is the number of the last line that was written.
var lines atomic.Int64

// padding makes a minute of lines more than a pipe holds.
var padding = strings.Repeat(".", 180)

func write(every time.Duration) {
	for range time.Tick(every) {
		fmt.Printf("line %d %s\n", lines.Load()+1, padding)
		lines.Add(1)
	}
}

// conns counts open connections by their state, for a graceful end.
type conns struct {
	mu   sync.Mutex
	open map[net.Conn]http.ConnState
}

func (c *conns) changed(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if state == http.StateClosed || state == http.StateHijacked {
		delete(c.open, conn)
		return
	}
	c.open[conn] = state
}

func (c *conns) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.open)
}

// patience is how long kept connections have to take their last answer, which
// says that they close.
const patience = 5 * time.Second

// await returns when no connection is open, or patience ends.
func (c *conns) await() {
	for deadline := time.Now().Add(patience); c.count() > 0 && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
	}
}

func serve(ctx context.Context) error {
	var unready atomic.Bool
	known := conns{open: map[net.Conn]http.ConnState{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if unready.Load() {
			http.Error(w, "told to be unready", http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("POST /ready", func(http.ResponseWriter, *http.Request) { unready.Store(false) })
	mux.HandleFunc("POST /unready", func(http.ResponseWriter, *http.Request) { unready.Store(true) })
	mux.HandleFunc("GET /lines", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, lines.Load()) })
	mux.HandleFunc("GET /file", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, os.Getenv("FILE")) })
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		if ctx.Err() != nil {
			w.Header().Set("Connection", "close")
		}
		fmt.Fprintf(w, "%s %s", os.Getenv("POD_NAME"), os.Getenv("VERSION"))
	})
	server := &http.Server{Addr: ":8080", Handler: mux, ReadHeaderTimeout: 5 * time.Second, ConnState: known.changed}
	ended := make(chan error, 1)
	go func() { ended <- server.ListenAndServe() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	known.await()
	closing, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := server.Shutdown(closing); err != nil {
		return err
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	known.await() // the last one that was accepted
	return nil
}
