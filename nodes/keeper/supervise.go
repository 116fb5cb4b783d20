package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// Run keeps the keeper alive until ctx ends or Stop is called: it holds a
// connection whose end tells of the keeper's death at once.
func (c *Client) Run(ctx context.Context) error {
	wait := retryPause
	for {
		began := time.Now()
		c.watch(ctx)
		if ctx.Err() != nil || c.isStopped() {
			return ctx.Err()
		}
		if time.Since(began) > time.Minute {
			wait = retryPause
		}
		c.log.Warn("keeper gone, starting another")
		if err := c.revive(ctx); err != nil && ctx.Err() == nil {
			c.log.Error("keeper not started", "error", err)
		}
		if pause(ctx, wait) != nil {
			return ctx.Err()
		}
		wait = min(2*wait, 5*time.Second)
	}
}

// watch returns when the keeper has gone.
func (c *Client) watch(ctx context.Context) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://keeper"+protocol+"/alive", nil)
	if err != nil {
		return
	}
	response, err := c.http.Do(request)
	if err != nil {
		return
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, response.Body)
}

// revive starts a keeper and sends what the last one served, in case that its
// state was lost with it.
func (c *Client) revive(ctx context.Context) error {
	if err := c.ensure(ctx); err != nil {
		return err
	}
	c.mu.Lock()
	names := c.dns
	c.mu.Unlock()
	if names == nil {
		return nil
	}
	body, err := json.Marshal(names)
	if err != nil {
		return err
	}
	return c.try(ctx, http.MethodPut, "/dns", body, nil)
}

// ensure returns when a keeper of our binary answers.
func (c *Client) ensure(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	binary, err := identity(c.command[0])
	if err != nil {
		return fmt.Errorf("keeper: %w", err)
	}
	binary = ofCommand(binary, c.command)
	found, err := c.hello(ctx)
	switch {
	case err == nil && found.Binary == binary:
		c.log.Debug("keeper found", "pid", found.PID)
		return nil
	case err == nil:
		c.log.Info("keeper of another binary or with other flags found, replacing it", "pid", found.PID)
		return c.replace(ctx, binary)
	case !unreachable(err):
		return fmt.Errorf("keeper: %w", err)
	}
	return c.spawn(ctx, binary)
}

// replace has the living keeper execute our binary. The path goes by our
// process id: it stays valid when the file has been replaced meanwhile.
func (c *Client) replace(ctx context.Context, binary string) error {
	path, err := filepath.Abs(c.command[0])
	if err != nil {
		return err
	}
	if own, err := identity("/proc/self/exe"); err == nil && ofCommand(own, c.command) == binary {
		path = fmt.Sprintf("/proc/%d/exe", os.Getpid())
	}
	body, err := json.Marshal(replacement{Path: path, Args: c.command})
	if err != nil {
		return err
	}
	if err := c.try(ctx, http.MethodPost, "/replace", body, nil); err != nil {
		return fmt.Errorf("replace keeper: %w", err)
	}
	return c.await(ctx, binary, nil)
}

// spawn starts a keeper that outlives us: in a session of its own, its own
// messages in a file.
func (c *Client) spawn(ctx context.Context, binary string) error {
	if err := os.MkdirAll(dir(c.runDir), 0o700); err != nil {
		return fmt.Errorf("keeper: %w", err)
	}
	output, err := os.OpenFile(filepath.Join(dir(c.runDir), "keeper.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("keeper: %w", err)
	}
	defer output.Close()
	command := exec.Command(c.command[0], c.command[1:]...)
	command.Dir = "/"
	command.Stdout, command.Stderr = output, output
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := command.Start(); err != nil {
		return fmt.Errorf("start keeper: %w", err)
	}
	ended := make(chan error, 1)
	// Reaps the keeper if it ends before us; ends with it or with us.
	go func() { ended <- command.Wait() }()
	if err := c.await(ctx, binary, ended); err != nil {
		return fmt.Errorf("start keeper: %w (see %s)", err, output.Name())
	}
	c.log.Info("keeper started", "pid", command.Process.Pid)
	return nil
}

// await polls until a keeper of the given binary answers or the new process has ended.
func (c *Client) await(ctx context.Context, binary string, ended <-chan error) error {
	for {
		if found, err := c.hello(ctx); err == nil && found.Binary == binary {
			return nil
		}
		select {
		case err := <-ended:
			if err == nil {
				err = errors.New("it ended at once")
			}
			return err
		case <-ctx.Done():
			return errors.New("it does not answer")
		case <-time.After(retryPause):
		}
	}
}
