// Package runtimetest is what every implementation of nodes/runtime must do:
// one suite that the fake and the real part pass alike. Its packages daemon,
// image and registry give the real parts.
package runtimetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

// Subject is one runtime under test, empty at first.
type Subject struct {
	Runtime runtime.Runtime
	// Image can be pulled; it holds runtimetest/program as /program and says so
	// in its Entrypoint. Missing is a reference of which the registry knows nothing.
	Image, Missing string
	// Handler is one that the runtime has beside runc.
	Handler string
	// Complete fills in what the machine demands of a container, e.g. its
	// cgroup; nil if nothing.
	Complete func(*runtime.Container)
	// Look checks what an image that is mounted on a directory shows; nil where
	// nothing shows.
	Look func(t *testing.T, dir string)
	// Unmount ends such a mount; nil where there is none.
	Unmount func(t *testing.T, dir string)
	// Crash makes the runtime go away and come back.
	Crash func(t *testing.T)
}

// patience bounds what must happen soon.
const patience = 30 * time.Second

// Run runs the suite; each part gets a subject of its own from setUp.
func Run(t *testing.T, setUp func(t *testing.T) Subject) {
	parts := []struct {
		name string
		test func(*testing.T, Subject)
	}{
		{"info", testInfo},
		{"pull", testPull},
		{"images are removed", testRemoveImage},
		{"images are mounted", testMountImage},
		{"life of a container", testLife},
		{"exit codes", testExitCodes},
		{"start that fails", testStartFails},
		{"handlers", testHandlers},
		{"create without image", testCreateWithoutImage},
		{"delete kills", testDeleteKills},
		{"list", testList},
		{"looked at while it starts", testLookWhileStarting},
		{"exec", testExec},
		{"update and usage", testUpdate},
		{"unknown containers", testUnknown},
		{"events survive a crash", testEvents},
	}
	for _, part := range parts {
		t.Run(part.name, func(t *testing.T) { part.test(t, setUp(t)) })
	}
}

// container returns one that runs the test program.
func (s Subject) container(id string, args ...string) runtime.Container {
	c := runtime.Container{
		ID: id, Pod: "pod-" + id, Labels: map[string]string{"tallyman.dev/test": id}, Image: s.Image,
		Args: append([]string{"/program"}, args...), Dir: "/",
	}
	if s.Complete != nil {
		s.Complete(&c)
	}
	return c
}

func (s Subject) pulled(t *testing.T) runtime.Image {
	t.Helper()
	img, err := s.Runtime.Pull(t.Context(), s.Image, runtime.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// started creates and starts a container, which is deleted in the end.
func (s Subject) started(t *testing.T, c runtime.Container) {
	t.Helper()
	s.created(t, c)
	if err := s.Runtime.Start(t.Context(), c.ID); err != nil {
		t.Fatal(err)
	}
}

func (s Subject) created(t *testing.T, c runtime.Container) {
	t.Helper()
	if err := s.Runtime.Create(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Runtime.Delete(context.Background(), c.ID); err != nil {
			t.Error(err)
		}
	})
}

func (s Subject) status(t *testing.T, id string) runtime.Status {
	t.Helper()
	status, err := s.Runtime.Status(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return status
}

// ended waits for a container's end.
func (s Subject) ended(t *testing.T, id string) runtime.Status {
	t.Helper()
	var status runtime.Status
	Eventually(t, id+" ends", func() error {
		status = s.status(t, id)
		if status.State != runtime.Exited {
			return fmt.Errorf("it is %s", status.State)
		}
		return nil
	})
	return status
}

// Eventually polls until ok returns nil, and fails the test when it never does.
func Eventually(t *testing.T, what string, ok func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func testInfo(t *testing.T, s Subject) {
	info, err := s.Runtime.Info(t.Context())
	if err != nil || info.Name == "" || info.Version == "" {
		t.Fatalf("%+v, %v", info, err)
	}
}

func testPull(t *testing.T, s Subject) {
	if _, err := s.Runtime.Image(t.Context(), s.Image); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("before the pull: %v", err)
	}
	if _, err := s.Runtime.Pull(t.Context(), s.Missing, runtime.PullOptions{}); err == nil {
		t.Errorf("missing image: %v", err)
	}
	var done, total int64
	img, err := s.Runtime.Pull(t.Context(), s.Image, runtime.PullOptions{Progress: func(d, all int64) { done, total = max(done, d), max(total, all) }})
	if err != nil {
		t.Fatal(err)
	}
	if done == 0 || done != total {
		t.Errorf("progress ended at %d of %d", done, total)
	}
	if diff := cmp.Diff([]string{"/program"}, img.Config.Entrypoint); diff != "" {
		t.Error(diff)
	}
	for _, ref := range []string{s.Image, img.ID} {
		found, err := s.Runtime.Image(t.Context(), ref)
		if err != nil || found.ID != img.ID {
			t.Errorf("%s is %+v, %v", ref, found, err)
		}
	}
	if again := s.pulled(t); again.ID != img.ID {
		t.Errorf("pulled again: %+v", again)
	}
	list, err := s.Runtime.Images(t.Context())
	if err != nil || len(list) != 1 || list[0].ID != img.ID || list[0].Size == 0 || list[0].Digest == "" {
		t.Fatalf("images are %+v, %v", list, err)
	}
	if diff := cmp.Diff([]string{nodes.ImageName(s.Image)}, list[0].Names); diff != "" {
		t.Errorf("names of the image: %s", diff)
	}
}

func testMountImage(t *testing.T, s Subject) {
	dir := t.TempDir()
	if err := s.Runtime.MountImage(t.Context(), "owner", s.Image, dir); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("an image that is not here: %v", err)
	}
	img := s.pulled(t)
	for range 2 {
		if err := s.Runtime.MountImage(t.Context(), "owner", s.Image, dir); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Runtime.RemoveImage(t.Context(), img.ID); err != nil {
		t.Fatal(err)
	}
	if s.Look != nil {
		s.Look(t, dir)
		s.Unmount(t, dir)
	}
	for _, owner := range []string{"owner", "owner", "other", ""} {
		if err := s.Runtime.ReleaseImages(t.Context(), owner); err != nil {
			t.Errorf("release %q: %v", owner, err)
		}
	}
}

func testRemoveImage(t *testing.T, s Subject) {
	img := s.pulled(t)
	s.started(t, s.container("keeps", "serve"))
	if err := s.Runtime.RemoveImage(t.Context(), img.ID); err != nil {
		t.Fatal(err)
	}
	if err := s.Runtime.RemoveImage(t.Context(), img.ID); err != nil {
		t.Errorf("again: %v", err)
	}
	if _, err := s.Runtime.Image(t.Context(), s.Image); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("removed image: %v", err)
	}
	if _, err := s.Runtime.Exec(t.Context(), "keeps", []string{"/program", "print", "x"}, nil); err != nil {
		t.Errorf("container of a removed image: %v", err)
	}
	s.pulled(t)
	s.started(t, s.container("after", "serve"))
}

func testLife(t *testing.T, s Subject) {
	s.pulled(t)
	c := s.container("life", "serve")
	s.created(t, c)
	if err := s.Runtime.Create(t.Context(), c); err != nil {
		t.Errorf("created again: %v", err)
	}
	status := s.status(t, "life")
	if status.State != runtime.Created || status.Pod != c.Pod || status.Created.IsZero() || !status.Started.IsZero() {
		t.Errorf("created: %+v", status)
	}
	for range 2 {
		if err := s.Runtime.Start(t.Context(), "life"); err != nil {
			t.Fatal(err)
		}
	}
	status = s.status(t, "life")
	if status.State != runtime.Running || status.PID == 0 || status.Started.IsZero() || !status.Finished.IsZero() {
		t.Errorf("running: %+v", status)
	}
	if diff := cmp.Diff(c.Labels, status.Labels); diff != "" {
		t.Error(diff)
	}
	s.serving(t, "life")
	if err := s.Runtime.Kill(t.Context(), "life", "SIGTERM"); err != nil {
		t.Fatal(err)
	}
	status = s.ended(t, "life")
	if status.ExitCode != 0 || status.Finished.IsZero() || status.OOMKilled {
		t.Errorf("ended: %+v", status)
	}
	if err := s.Runtime.Kill(t.Context(), "life", "SIGTERM"); err != nil {
		t.Errorf("killed after the end: %v", err)
	}
	if err := s.Runtime.Start(t.Context(), "life"); err == nil {
		t.Error("started after the end")
	}
	for range 2 {
		if err := s.Runtime.Delete(t.Context(), "life"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Runtime.Status(t.Context(), "life"); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("deleted: %v", err)
	}
}

// serving waits until the program in a container handles signals: a process
// that has just begun is ended by SIGTERM at once, with another exit code.
func (s Subject) serving(t *testing.T, id string) {
	t.Helper()
	Eventually(t, id+" serves", func() error {
		var out bytes.Buffer
		if _, err := s.Runtime.Exec(t.Context(), id, []string{"/program", "cat", "/proc/1/status"}, &out); err != nil {
			return err
		}
		for line := range strings.Lines(out.String()) {
			if mask, ok := strings.CutPrefix(line, "SigCgt:"); ok && strings.TrimLeft(strings.TrimSpace(mask), "0") != "" {
				return nil
			}
		}
		return errors.New("it catches no signal")
	})
}

func testExitCodes(t *testing.T, s Subject) {
	s.pulled(t)
	s.started(t, s.container("three", "exit", "3"))
	if got := s.ended(t, "three").ExitCode; got != 3 {
		t.Errorf("exit code %d, want 3", got)
	}
	s.started(t, s.container("killed", "stubborn"))
	if err := s.Runtime.Kill(t.Context(), "killed", "KILL"); err != nil {
		t.Fatal(err)
	}
	if got := s.ended(t, "killed").ExitCode; got != 137 {
		t.Errorf("exit code %d, want 137", got)
	}
}

func testStartFails(t *testing.T, s Subject) {
	s.pulled(t)
	c := s.container("nope")
	c.Args = []string{"/nope"}
	s.created(t, c)
	err := s.Runtime.Start(t.Context(), "nope")
	if err == nil || !strings.Contains(err.Error(), "/nope") || strings.Contains(err.Error(), "runc") {
		t.Errorf("got %v", err)
	}
	status := s.status(t, "nope")
	if status.State != runtime.Exited || status.ExitCode != 128 || !strings.Contains(status.Message, "/nope") {
		t.Errorf("got %+v", status)
	}
}

// testHandlers wants a container without its handler to wait, and a pod's
// containers to run under one.
func testHandlers(t *testing.T, s Subject) {
	s.pulled(t)
	waits := s.container("waits", "serve")
	waits.Handler = "absent"
	s.created(t, waits)
	for range 2 {
		err := s.Runtime.Start(t.Context(), waits.ID)
		if !errors.Is(err, runtime.ErrNoHandler) || !strings.Contains(err.Error(), `"absent"`) {
			t.Errorf("got %v", err)
		}
		s.Crash(t)
		if status := s.status(t, waits.ID); status.State != runtime.Created || status.Message != "" {
			t.Errorf("got %+v", status)
		}
	}
	for _, id := range []string{"one", "two"} {
		c := s.container(id, "serve")
		c.Pod, c.Handler = "pod", s.Handler
		s.started(t, c)
	}
	for _, id := range []string{"one", "two"} {
		if status := s.status(t, id); status.State != runtime.Running {
			t.Errorf("got %+v", status)
		}
	}
	named := s.container("named", "exit", "3")
	named.Handler = "runc"
	s.started(t, named)
	if status := s.ended(t, named.ID); status.ExitCode != 3 {
		t.Errorf("got %+v", status)
	}
}

func testCreateWithoutImage(t *testing.T, s Subject) {
	if err := s.Runtime.Create(t.Context(), s.container("orphan", "serve")); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("got %v", err)
	}
	if _, err := s.Runtime.Status(t.Context(), "orphan"); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("it is there: %v", err)
	}
}

func testDeleteKills(t *testing.T, s Subject) {
	s.pulled(t)
	s.started(t, s.container("busy", "stubborn"))
	if err := s.Runtime.Delete(t.Context(), "busy"); err != nil {
		t.Fatal(err)
	}
	s.started(t, s.container("busy", "serve")) // the ID is free again
}

func testList(t *testing.T, s Subject) {
	img := s.pulled(t)
	s.created(t, s.container("b", "serve"))
	s.started(t, s.container("a", "serve"))
	s.started(t, s.container("c", "exit", "1"))
	s.ended(t, "c")
	list, err := s.Runtime.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, status := range list {
		got = append(got, fmt.Sprintf("%s %s %s %s", status.ID, status.Pod, status.State, status.Labels["tallyman.dev/test"]))
		if status.ImageID != img.ID || status.Image != s.Image {
			t.Errorf("%s is of image %s (%s)", status.ID, status.Image, status.ImageID)
		}
	}
	if diff := cmp.Diff([]string{"a pod-a running a", "b pod-b created b", "c pod-c exited c"}, got); diff != "" {
		t.Error(diff)
	}
}

// testLookWhileStarting looks all the time: a container that is being started
// has not ended, and whoever believed that would start another beside it.
func testLookWhileStarting(t *testing.T, s Subject) {
	s.pulled(t)
	looked := make(chan error, 1)
	stop := make(chan struct{})
	go func() {
		var wrong error
		for wrong == nil {
			select {
			case <-stop:
				looked <- nil
				return
			default:
			}
			list, err := s.Runtime.List(t.Context())
			wrong = err
			for _, status := range list {
				if status.State == runtime.Exited {
					wrong = fmt.Errorf("listed as ended: %+v", status)
				}
			}
		}
		looked <- wrong
	}()
	for i := range 8 {
		s.started(t, s.container(fmt.Sprintf("starting-%d", i), "serve"))
	}
	close(stop)
	if err := <-looked; err != nil {
		t.Error(err)
	}
}

func testExec(t *testing.T, s Subject) {
	s.pulled(t)
	s.started(t, s.container("exec", "serve"))
	var out bytes.Buffer
	code, err := s.Runtime.Exec(t.Context(), "exec", []string{"/program", "print", "hello"}, &out)
	if err != nil || code != 0 || out.String() != "hello\n" {
		t.Errorf("print: %d, %v, %q", code, err, out.String())
	}
	if code, err := s.Runtime.Exec(t.Context(), "exec", []string{"/program", "exit", "5"}, nil); err != nil || code != 5 {
		t.Errorf("exit: %d, %v", code, err)
	}
	if _, err := s.Runtime.Exec(t.Context(), "exec", []string{"/nope"}, nil); err == nil || !strings.Contains(err.Error(), "/nope") {
		t.Errorf("unknown command: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := s.Runtime.Exec(ctx, "exec", []string{"/program", "forever"}, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("command without end: %v", err)
	}
	if got := s.status(t, "exec").State; got != runtime.Running {
		t.Errorf("container is %s", got)
	}
}

func testUpdate(t *testing.T, s Subject) {
	s.pulled(t)
	s.started(t, s.container("sized", "serve"))
	if err := s.Runtime.Update(t.Context(), "sized", runtime.Resources{CPUShares: 512, Memory: 256 << 20}); err != nil {
		t.Error(err)
	}
	Eventually(t, "memory is used", func() error {
		used, err := s.Runtime.Usage(t.Context(), "sized")
		if err == nil && used.Memory <= 0 {
			err = fmt.Errorf("usage is %+v", used)
		}
		return err
	})
}

func testUnknown(t *testing.T, s Subject) {
	ctx := t.Context()
	_, execErr := s.Runtime.Exec(ctx, "none", []string{"/program"}, nil)
	_, usageErr := s.Runtime.Usage(ctx, "none")
	_, writtenErr := s.Runtime.Written(ctx, "none")
	_, statusErr := s.Runtime.Status(ctx, "none")
	for what, err := range map[string]error{
		"start": s.Runtime.Start(ctx, "none"), "kill": s.Runtime.Kill(ctx, "none", "SIGTERM"),
		"update": s.Runtime.Update(ctx, "none", runtime.Resources{CPUShares: 2}),
		"exec":   execErr, "usage": usageErr, "written": writtenErr, "status": statusErr,
	} {
		if !errors.Is(err, runtime.ErrNotFound) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := s.Runtime.Delete(ctx, "none"); err != nil {
		t.Errorf("delete: %v", err)
	}
}

func testEvents(t *testing.T, s Subject) {
	s.pulled(t)
	ctx, cancel := context.WithCancel(t.Context())
	events := s.Runtime.Events(ctx)
	next(t, events, runtime.Event{Reconnected: true})
	s.started(t, s.container("short", "exit", "0"))
	s.started(t, s.container("long", "serve"))
	s.ended(t, "short")
	next(t, events, runtime.Event{ID: "short"})
	s.serving(t, "long")
	pid := s.status(t, "long").PID
	s.Crash(t)
	next(t, events, runtime.Event{Reconnected: true})
	status := s.status(t, "long")
	if status.State != runtime.Running || status.PID != pid {
		t.Errorf("after the crash: %+v, was process %d", status, pid)
	}
	if got := s.status(t, "short"); got.State != runtime.Exited || got.ExitCode != 0 {
		t.Errorf("after the crash: %+v", got)
	}
	if err := s.Runtime.Kill(t.Context(), "long", "SIGTERM"); err != nil {
		t.Fatal(err)
	}
	s.ended(t, "long")
	next(t, events, runtime.Event{ID: "long"})
	cancel()
	Eventually(t, "the channel is closed", func() error {
		if _, open := <-events; open {
			return errors.New("it is open")
		}
		return nil
	})
}

// next waits for an event.
func next(t *testing.T, events <-chan runtime.Event, want runtime.Event) {
	t.Helper()
	select {
	case got := <-events:
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatal(diff)
		}
	case <-time.After(patience):
		t.Fatalf("no event %+v", want)
	}
}
