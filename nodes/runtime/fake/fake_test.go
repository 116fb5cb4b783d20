package fake_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tallyman-dev/tallyman/nodes/runtime"
	"github.com/tallyman-dev/tallyman/nodes/runtime/fake"
	"github.com/tallyman-dev/tallyman/nodes/runtime/runtimetest"
)

const ref = "registry.test/program:v1"

// program behaves as runtimetest/program does.
func program(c runtime.Container) fake.Behaviour {
	if c.Args[0] != "/program" {
		return fake.Behaviour{FailStart: fmt.Sprintf("exec: %q: no such file or directory", c.Args[0])}
	}
	switch c.Args[1] {
	case "exit":
		code, err := strconv.Atoi(c.Args[2])
		if err != nil {
			panic(err)
		}
		return fake.Behaviour{Exits: true, Code: int32(code)}
	case "stubborn":
		return fake.Behaviour{IgnoresTerm: true}
	}
	return fake.Behaviour{}
}

func command(ctx context.Context, _ runtime.Container, args []string, w io.Writer) (int, error) {
	if args[0] != "/program" {
		return 0, fmt.Errorf("exec: %q: no such file or directory", args[0])
	}
	switch args[1] {
	case "print":
		if w != nil {
			fmt.Fprintln(w, strings.Join(args[2:], " "))
		}
	case "cat":
		fmt.Fprintln(w, "SigCgt:\t0000000000004000")
	case "exit":
		return strconv.Atoi(args[2])
	case "forever":
		<-ctx.Done()
		return 0, ctx.Err()
	}
	return 0, nil
}

func world(now func() time.Time) *fake.Runtime {
	return fake.New(fake.Options{
		Now: now, Behave: program, Exec: command, Handlers: []string{"other"},
		Images: map[string]runtime.Image{ref: {Size: 5 << 20, Config: runtime.ImageConfig{Entrypoint: []string{"/program"}}}},
	})
}

func TestConformance(t *testing.T) {
	runtimetest.Run(t, func(*testing.T) runtimetest.Subject {
		r := world(time.Now)
		return runtimetest.Subject{
			Runtime: r, Image: ref, Missing: "registry.test/missing:v1", Handler: "other",
			Crash: func(*testing.T) { r.Crash(); r.Recover() },
		}
	})
}

func TestWorldFollowsItsClock(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)
	r := fake.New(fake.Options{
		Now:    func() time.Time { return now },
		Images: map[string]runtime.Image{ref: {}},
		Behave: func(runtime.Container) fake.Behaviour {
			return fake.Behaviour{Exits: true, After: time.Minute, Code: 4}
		},
	})
	ctx := t.Context()
	_, err := r.Pull(ctx, ref, runtime.PullOptions{})
	err = errors.Join(err, r.Create(ctx, runtime.Container{ID: "a", Pod: "p", Image: ref, Args: []string{"work"}}), r.Start(ctx, "a"))
	if err != nil {
		t.Fatal(err)
	}
	if got := r.NextExit(); !got.Equal(now.Add(time.Minute)) {
		t.Errorf("next exit at %v", got)
	}
	now = now.Add(time.Hour)
	r.Tick()
	want := "image registry.test/program:v1 sha256:registry.test/program:v1\ncontainer a pod=p image=registry.test/program:v1 exited code=4 work\n"
	if diff := cmp.Diff(want, r.String()); diff != "" {
		t.Error(diff)
	}
	r.Crash()
	if _, err := r.List(ctx); !errors.Is(err, runtime.ErrUnavailable) {
		t.Errorf("while down: %v", err)
	}
}
