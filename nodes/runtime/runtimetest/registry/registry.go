// Package registry runs a real image registry, Debian's docker-registry, on
// loopback, for tests, benchmarks and the demo. It lives until Stop.
package registry

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// Options for Start.
type Options struct {
	// Dir holds the registry's data and configuration. Required.
	Dir string
	// Addr to listen on; a free port of 127.0.0.1 by default.
	Addr string
	// User and Password are demanded of everybody when set.
	User, Password string
}

// Registry is a running registry.
type Registry struct {
	// Addr is host:port: the beginning of its images' names.
	Addr string

	process *os.Process
	ended   chan struct{}
}

// startTimeout is how long it may take until it answers.
const startTimeout = 20 * time.Second

// Start runs a registry and returns when it answers.
func Start(ctx context.Context, o Options) (*Registry, error) {
	if o.Dir == "" {
		return nil, errors.New("start registry: no directory")
	}
	if o.Addr == "" {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("start registry: %w", err)
		}
		o.Addr = l.Addr().String()
		l.Close()
	}
	config, err := writeConfig(o)
	if err != nil {
		return nil, fmt.Errorf("start registry: %w", err)
	}
	output, err := os.Create(filepath.Join(o.Dir, "registry.log"))
	if err != nil {
		return nil, fmt.Errorf("start registry: %w", err)
	}
	defer output.Close()
	command := exec.Command("docker-registry", "serve", config)
	command.Stdout, command.Stderr = output, output
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := command.Start(); err != nil {
		return nil, fmt.Errorf("start registry (Debian package docker-registry): %w", err)
	}
	r := &Registry{Addr: o.Addr, process: command.Process, ended: make(chan struct{})}
	go func() { defer close(r.ended); _ = command.Wait() }()
	if err := r.await(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start registry: %w (see %s)", err, output.Name()), r.Stop())
	}
	return r, nil
}

func writeConfig(o Options) (string, error) {
	if err := os.MkdirAll(filepath.Join(o.Dir, "data"), 0o755); err != nil {
		return "", err
	}
	config := fmt.Sprintf("version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: %s\n  delete:\n    enabled: true\nhttp:\n  addr: %s\n",
		filepath.Join(o.Dir, "data"), o.Addr)
	if o.User != "" {
		hash, err := bcrypt.GenerateFromPassword([]byte(o.Password), bcrypt.MinCost)
		if err != nil {
			return "", err
		}
		users := filepath.Join(o.Dir, "htpasswd")
		if err := os.WriteFile(users, fmt.Appendf(nil, "%s:%s\n", o.User, hash), 0o600); err != nil {
			return "", err
		}
		config += fmt.Sprintf("auth:\n  htpasswd:\n    realm: test\n    path: %s\n", users)
	}
	path := filepath.Join(o.Dir, "config.yml")
	return path, os.WriteFile(path, []byte(config), 0o600)
}

// await polls until the registry answers, whatever it says.
func (r *Registry) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.Addr+"/v2/", nil)
		if err != nil {
			return err
		}
		if response, err := http.DefaultClient.Do(request); err == nil {
			return response.Body.Close()
		}
		select {
		case <-r.ended:
			return errors.New("it ended at once")
		case <-ctx.Done():
			return errors.New("it does not answer")
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// PID of the registry's process.
func (r *Registry) PID() int { return r.process.Pid }

// Stop ends the registry; its data stays.
func (r *Registry) Stop() error {
	select {
	case <-r.ended:
		return nil
	default:
	}
	if err := r.process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop registry: %w", err)
	}
	<-r.ended
	return nil
}
