package keeper

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/nodes"
)

// StartOptions for Start.
type StartOptions struct {
	// Command runs a keeper, e.g. "/proc/self/exe keeper --run-dir …". Required.
	Command []string
	// RunDir as in Options. Required.
	RunDir string
	// Log is required.
	Log *slog.Logger
}

// Client is the agent's end. Make it with Start; Run keeps the keeper alive.
// Safe for concurrent use.
type Client struct {
	log     *slog.Logger
	command []string
	runDir  string
	http    *http.Client

	mu sync.Mutex // guards what follows
	// dns is what was last accepted, to send only what changed.
	dns     *DNS
	stopped bool
}

const (
	// startTimeout is how long a new keeper may take until it answers.
	startTimeout = 10 * time.Second
	// patch is how long a call waits for a keeper that is being restarted.
	patch = 5 * time.Second
	// retryPause is the pause between two attempts at either.
	retryPause = 10 * time.Millisecond
)

// errRefused is a request that the keeper understood and turned down.
type errRefused struct{ reason string }

func (e errRefused) Error() string { return e.reason }

// Start finds the living keeper or starts one. One that runs another binary
// than Command's is told to put the new one in its place, keeping its descriptors.
func Start(ctx context.Context, o StartOptions) (*Client, error) {
	if len(o.Command) == 0 || o.RunDir == "" {
		return nil, errors.New("keeper: no command or run dir")
	}
	if o.Log == nil {
		return nil, errors.New("keeper: no logger")
	}
	socket := socketPath(o.RunDir)
	c := &Client{log: o.Log, command: slices.Clone(o.Command), runDir: o.RunDir}
	c.http = &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 8,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}}
	return c, c.ensure(ctx)
}

// OpenLog makes the pipes of a container's log and has them read. Doing it
// again is success and may change path and limits. The pipes must be open
// before the container starts.
func (c *Client) OpenLog(ctx context.Context, l Log) (Pipes, error) {
	var pipes Pipes
	if err := c.call(ctx, http.MethodPost, "/logs", l, &pipes); err != nil {
		return Pipes{}, fmt.Errorf("open log %s: %w", l.ID, err)
	}
	return pipes, nil
}

// CloseLog writes what is left in a log's pipes and removes them; the file
// stays. Call it after the container is deleted: only then has the runtime
// written everything. A log that is not open is success.
func (c *Client) CloseLog(ctx context.Context, id string) error {
	if err := c.call(ctx, http.MethodDelete, "/logs/"+url.PathEscape(id), nil, nil); err != nil {
		return fmt.Errorf("close log %s: %w", id, err)
	}
	return nil
}

// SetDNS has names served from d, from now on and after a restart of the
// keeper. Only what names are made of is sent, and nothing when that is as it
// was accepted last.
func (c *Client) SetDNS(ctx context.Context, d DNS) error {
	d = d.served()
	c.mu.Lock()
	same := c.dns != nil && c.dns.equal(d)
	c.mu.Unlock()
	if same {
		return nil
	}
	if err := c.call(ctx, http.MethodPut, "/dns", d, nil); err != nil {
		return fmt.Errorf("serve names: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dns = &d
	return nil
}

// Fence has pods killed at the instant ends of CLOCK_BOOTTIME; nil says that the
// keeper will. Doing it again moves the instant, to later only. It is refused
// when ends has passed.
func (c *Client) Fence(ctx context.Context, ends time.Duration, pods []Fence) error {
	if err := c.call(ctx, http.MethodPut, "/fences", armRequest{ends, pods}, nil); err != nil {
		return fmt.Errorf("fence pods: %w", err)
	}
	return nil
}

// Unfence lets pods go; one that is not fenced is success.
func (c *Client) Unfence(ctx context.Context, pods []nodes.UID) error {
	if err := c.call(ctx, http.MethodPost, "/unfence", pods, nil); err != nil {
		return fmt.Errorf("unfence pods: %w", err)
	}
	return nil
}

// Fences are those that the keeper holds, by pod.
func (c *Client) Fences(ctx context.Context) ([]HeldFence, error) {
	var held []HeldFence
	if err := c.call(ctx, http.MethodGet, "/fences", nil, &held); err != nil {
		return nil, fmt.Errorf("list fences: %w", err)
	}
	return held, nil
}

// Stop ends the keeper and returns when its process has ended. Logs are not
// read and names not served any more, until Start is called again.
func (c *Client) Stop(ctx context.Context) error {
	c.mu.Lock()
	c.stopped = true
	c.mu.Unlock()
	found, err := c.hello(ctx)
	if unreachable(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stop keeper: %w", err)
	}
	process, err := unix.PidfdOpen(found.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stop keeper: find process %d: %w", found.PID, err)
	}
	defer unix.Close(process)
	if err := c.try(ctx, http.MethodPost, "/stop", nil, nil); err != nil {
		if unreachable(err) {
			return nil
		}
		return fmt.Errorf("stop keeper: %w", err)
	}
	return awaitEnd(ctx, process)
}

// awaitEnd waits until the process of a descriptor has ended, reaped or not.
func awaitEnd(ctx context.Context, process int) error {
	for ctx.Err() == nil {
		polled := []unix.PollFd{{Fd: int32(process), Events: unix.POLLIN}}
		ready, err := unix.Poll(polled, int(retryPause.Milliseconds()))
		switch {
		case ready > 0:
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("stop keeper: await its end: %w", err)
		}
	}
	return fmt.Errorf("stop keeper: %w", ctx.Err())
}

// call sends a request, again while the keeper is being restarted. All
// requests can be repeated without harm.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return err
		}
	}
	deadline := time.Now().Add(patch)
	for {
		err := c.try(ctx, method, path, body, out)
		if err == nil || !unreachable(err) || time.Now().After(deadline) || c.isStopped() {
			return err
		}
		if pause(ctx, retryPause) != nil {
			return err
		}
	}
}

func (c *Client) isStopped() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stopped
}

// try sends a request once.
func (c *Client) try(ctx context.Context, method, path string, body []byte, out any) error {
	request, err := http.NewRequestWithContext(ctx, method, "http://keeper"+protocol+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	response, err := c.http.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(io.LimitReader(response.Body, maxRequest))
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return errRefused{strings.TrimSpace(string(content))}
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(content, out)
}

// unreachable tells that no keeper answered, rather than one that refused.
func unreachable(err error) bool {
	var refused errRefused
	return err != nil && !errors.As(err, &refused) &&
		!errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
}

func (c *Client) hello(ctx context.Context) (hello, error) {
	var h hello
	return h, c.try(ctx, http.MethodGet, "/hello", nil, &h)
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
