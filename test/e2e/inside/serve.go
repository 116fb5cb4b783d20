package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// serve answers over HTTP and UDP on one port, and gRPC health checks on
// another, until it is told to end. It closes gracefully.
func serve(args []string) error {
	flags := flag.NewFlagSet("serve", flag.ExitOnError)
	listen := flags.String("listen", ":8080", "address for HTTP and UDP")
	checks := flags.String("grpc", "", "address for gRPC health checks")
	ready := flags.Bool("ready", true, "whether /readyz says yes from the start")
	first := flags.String("first", "", "FILE=LINE to append at the start")
	last := flags.String("last", "", "FILE=LINE to append at the end")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if err := note(*first); err != nil {
		return err
	}
	s := &server{}
	s.ready.Store(*ready)
	if *checks != "" {
		if err := serveGRPC(*checks); err != nil {
			return err
		}
	}
	if err := serveUDP(*listen); err != nil {
		return err
	}
	web := &http.Server{Addr: *listen, Handler: s.handler(), ReadHeaderTimeout: 5 * time.Second}
	closed := make(chan error, 1)
	go func() {
		await()
		time.Sleep(straggling)
		closing, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		closed <- web.Shutdown(closing)
	}()
	fmt.Println("serving", *listen)
	if err := web.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	// ListenAndServe returns when closing begins: requests are still at work.
	return errors.Join(<-closed, note(*last))
}

// straggling is how long requests are still answered after the order to end:
// Go's server drops what it has accepted and not read when it begins to close.
const straggling = 200 * time.Millisecond

func note(what string) error {
	if file, line, found := strings.Cut(what, "="); found {
		return appendLine(file, line)
	}
	return nil
}

func serveGRPC(listen string) error {
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	s := grpc.NewServer()
	healthpb.RegisterHealthServer(s, health.NewServer())
	go s.Serve(listener)
	return nil
}

// serveUDP answers every packet with the host's name.
func serveUDP(listen string) error {
	socket, err := net.ListenPacket("udp", listen)
	if err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	go func() {
		for buffer := make([]byte, 1500); ; {
			_, from, err := socket.ReadFrom(buffer)
			if err != nil {
				return
			}
			socket.WriteTo([]byte(host), from)
		}
	}()
	return nil
}

type server struct {
	ready atomic.Bool
	// burning keeps one core busy.
	burning atomic.Bool
}

// burn uses a core for as long as it is told to.
func (s *server) burn(on bool) {
	if s.burning.Swap(on) || !on {
		return
	}
	go func() {
		for s.burning.Load() {
		}
	}()
}

func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		host, _ := os.Hostname()
		fmt.Fprint(w, host)
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !s.ready.Load() {
			http.Error(w, "not ready", http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("POST /ready", func(_ http.ResponseWriter, r *http.Request) { s.ready.Store(r.FormValue("is") == "true") })
	mux.HandleFunc("POST /burn", func(_ http.ResponseWriter, r *http.Request) { s.burn(r.FormValue("is") == "true") })
	mux.HandleFunc("POST /exit", func(_ http.ResponseWriter, r *http.Request) { os.Exit(number(r.FormValue("code"))) })
	mux.HandleFunc("GET /remote", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.RemoteAddr) })
	answer(mux, "GET /self", func(*http.Request) (any, error) { return self() })
	answer(mux, "GET /env", func(*http.Request) (any, error) { return environment(), nil })
	answer(mux, "GET /file", func(r *http.Request) (any, error) {
		content, err := os.ReadFile(r.FormValue("path"))
		return string(content), err
	})
	answer(mux, "GET /stat", func(r *http.Request) (any, error) { return stat(r.FormValue("path")) })
	answer(mux, "POST /append", func(r *http.Request) (any, error) {
		return nil, appendLine(r.FormValue("path"), r.FormValue("line"))
	})
	answer(mux, "POST /overwrite", func(r *http.Request) (any, error) {
		return nil, overwrite(r.FormValue("path"), r.FormValue("text"))
	})
	answer(mux, "GET /head", func(r *http.Request) (any, error) { return head(r.FormValue("path")) })
	answer(mux, "GET /lookup", func(r *http.Request) (any, error) {
		return lookup(r.Context(), r.FormValue("type"), r.FormValue("name"))
	})
	answer(mux, "GET /fetch", fetch)
	answer(mux, "POST /take", func(r *http.Request) (any, error) { return nil, take(r.FormValue("path"), r.FormValue("bytes")) })
	answer(mux, "POST /try", func(r *http.Request) (any, error) { return nil, try(r.FormValue("what")) })
	return mux
}

// answer serves a function's value as JSON, or its error as status 422.
func answer(mux *http.ServeMux, pattern string, f func(*http.Request) (any, error)) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		value, err := f(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnprocessableEntity)
			return
		}
		json.NewEncoder(w).Encode(value)
	})
}

func environment() map[string]string {
	found := map[string]string{}
	for _, entry := range os.Environ() {
		name, value, _ := strings.Cut(entry, "=")
		found[name] = value
	}
	return found
}

// self tells who and where the process is.
func self() (any, error) {
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	groups, err := os.Getgroups()
	if err != nil {
		return nil, err
	}
	dir, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return nil, err
	}
	lines := map[string]string{}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		lines[name] = strings.TrimSpace(value)
	}
	return map[string]any{
		"uid": os.Getuid(), "gid": os.Getgid(), "groups": groups, "dir": dir, "host": host, "pid": os.Getpid(),
		"args": os.Args, "status": lines, "processes": processes(),
	}, nil
}

func processes() []string {
	var all []string
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		if content, err := os.ReadFile(file); err == nil {
			all = append(all, strings.TrimSpace(strings.ReplaceAll(string(content), "\x00", " ")))
		}
	}
	return all
}

func stat(path string) (any, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	var s syscall.Statfs_t
	if err := syscall.Statfs(path, &s); err != nil {
		return nil, err
	}
	owner := info.Sys().(*syscall.Stat_t)
	const tmpfs = 0x01021994
	return map[string]any{
		"mode": info.Mode().String(), "uid": owner.Uid, "gid": owner.Gid,
		"tmpfs": s.Type == tmpfs, "bytes": int64(s.Blocks) * s.Bsize,
	}, nil
}

// overwrite writes at the beginning of a file or device, down to the disk.
func overwrite(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_SYNC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// take makes a file of a size, all of it there.
func take(path, size string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	return errors.Join(syscall.Fallocate(int(f.Fd()), 0, 0, int64(number(size))), f.Close())
}

// head is the first line of a file or device.
func head(path string) (any, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return bufio.NewReader(f).ReadString('\n')
}

func lookup(ctx context.Context, kind, name string) (any, error) {
	switch kind {
	case "a":
		return net.DefaultResolver.LookupHost(ctx, name)
	case "cname":
		return net.DefaultResolver.LookupCNAME(ctx, name)
	case "ptr":
		return net.DefaultResolver.LookupAddr(ctx, name)
	case "srv":
		_, records, err := net.DefaultResolver.LookupSRV(ctx, "", "", name)
		return records, err
	}
	return nil, fmt.Errorf("no lookup of type %q", kind)
}

// fetch asks another server, each time on a connection of its own.
func fetch(r *http.Request) (any, error) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get(r.FormValue("url"))
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return map[string]any{"status": response.StatusCode, "body": string(body)}, err
}

// try does what security settings allow or forbid.
func try(what string) error {
	switch what {
	case "unshare": // forbidden by the default seccomp profile
		return syscall.Unshare(syscall.CLONE_NEWUTS)
	case "mount":
		return syscall.Mount("none", "/proc", "tmpfs", 0, "")
	case "chown":
		return os.Chown("/chown", 1, 1)
	case "root": // writes to the root file system
		return os.WriteFile("/written", nil, 0o644)
	case "low": // binds a privileged port
		l, err := net.Listen("tcp", ":81")
		if err != nil {
			return err
		}
		return l.Close()
	}
	return fmt.Errorf("no such thing as %q to try", what)
}
