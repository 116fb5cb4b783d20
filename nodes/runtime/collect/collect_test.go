package collect

import (
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
		{"room enough", Disk{100, 84}, nil},
		{"just full", Disk{100, 85}, []string{"older"}},
		{"fuller", Disk{100, 90}, []string{"older", "old"}},
		{"by age, then by name, never what is used or young", Disk{100, 100}, []string{"older", "old", "a", "b"}},
		{"unknown disk", Disk{}, nil},
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
		Disk: func() (Disk, error) { return Disk{100, used}, nil }, Needed: func() []string { return []string{"img2"} },
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
