package collect

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tallyman-dev/tallyman/nodes/runtime"
	"github.com/tallyman-dev/tallyman/nodes/runtime/fake"
)

func TestPlan(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)
	image := func(id string, size int64, age time.Duration, inUse bool) Image {
		return Image{Image: runtime.Image{ID: id, Size: size}, LastUsed: now.Add(-age), InUse: inUse}
	}
	images := []Image{
		image("young", 50, time.Minute, false), image("old", 5, 3*time.Hour, false), image("used", 50, 9*time.Hour, true),
		image("older", 5, 4*time.Hour, false), image("b", 1, 2*time.Hour, false), image("a", 1, 2*time.Hour, false),
	}
	tests := []struct {
		name string
		disk Disk
		want []string
	}{
		{"room enough", Disk{Total: 100, Used: 84}, nil},
		{"just full", Disk{Total: 100, Used: 85}, []string{"older"}},
		{"fuller", Disk{Total: 100, Used: 90}, []string{"older", "old"}},
		{"by age, then by name, never what is used or young", Disk{Total: 100, Used: 100}, []string{"older", "old", "a", "b"}},
		{"unknown disk", Disk{}, nil},
		{"room for files", Disk{Total: 100, Files: 1000, UsedFiles: 949}, nil},
		{"no room for files", Disk{Total: 100, Files: 1000, UsedFiles: 950}, []string{"older", "old", "a", "b"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, Plan(Policy{}, images, test.disk, now)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestRounds(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)
	clock := func() time.Time { return now }
	images := map[string]runtime.Image{}
	for i := range 4 {
		images[fmt.Sprintf("img%d", i)] = runtime.Image{Size: 10}
	}
	world := fake.New(fake.Options{Now: clock, Images: images})
	for ref := range images {
		if _, err := world.Pull(t.Context(), ref, runtime.PullOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := world.Create(t.Context(), runtime.Container{ID: "c", Image: "img1", Args: []string{"x"}}); err != nil {
		t.Fatal(err)
	}
	pressed, used := 0, int64(100)
	c, err := New(Options{
		Pressed: func() { pressed++ },
		Runtime: world, Now: clock, Log: slog.New(slog.DiscardHandler),
		Disk: func() (Disk, error) { return Disk{Total: 100, Used: used}, nil }, Needed: func() []string { return []string{"img2"} },
	})
	if err != nil {
		t.Fatal(err)
	}
	for round, want := range []int{4, 2} {
		if err := c.Round(t.Context()); err != nil {
			t.Fatal(err)
		}
		left, err := world.Images(t.Context())
		if err != nil || len(left) != want {
			t.Fatalf("round %d left %v, %v", round, left, err)
		}
		now = now.Add(time.Hour)
	}
	used = 50
	if err := c.Round(t.Context()); err != nil || pressed != 2 {
		t.Errorf("told %d times that the disk is too full, want 2 (%v)", pressed, err)
	}
}

// stubborn keeps an image, whoever asks.
type stubborn struct {
	*fake.Runtime
	id string
}

func (s stubborn) RemoveImage(ctx context.Context, id string) error {
	if id == s.id {
		return errors.New("it is stuck")
	}
	return s.Runtime.RemoveImage(ctx, id)
}

// TestOneImageThatStaysKeepsNoOther: it may be the one that is always first.
func TestOneImageThatStaysKeepsNoOther(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)
	world := fake.New(fake.Options{Now: func() time.Time { return now }, Images: map[string]runtime.Image{"a": {ID: "a", Size: 10}, "b": {ID: "b", Size: 10}}})
	for _, ref := range []string{"a", "b"} {
		if _, err := world.Pull(t.Context(), ref, runtime.PullOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	c, err := New(Options{
		Runtime: stubborn{world, "a"}, Now: func() time.Time { return now }, Log: slog.New(slog.DiscardHandler),
		Disk: func() (Disk, error) { return Disk{Total: 100, Used: 100}, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Round(t.Context()); err != nil { // sees them for the first time
		t.Fatal(err)
	}
	now = now.Add(time.Hour)
	if err := c.Round(t.Context()); err == nil {
		t.Error("nothing is said of the image that stays")
	}
	left, err := world.Images(t.Context())
	if err != nil || len(left) != 1 || left[0].ID != "a" {
		t.Errorf("left %v, %v", left, err)
	}
}
