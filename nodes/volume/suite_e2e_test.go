//go:build e2e

package volume_test

import (
	"context"
	"log/slog"
	"testing"

	"github.com/tallyman-dev/tallyman/nodes/volume"
	"github.com/tallyman-dev/tallyman/nodes/volume/volumetest"
)

func TestPersistent(t *testing.T) {
	volumetest.Run(t, func(t *testing.T) volumetest.Subject {
		p, err := volume.NewPersistent(volume.PersistentOptions{DataDir: t.TempDir(), RunDir: t.TempDir(), Node: "n1", Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := p.Reset(context.Background(), true); err != nil {
				t.Error(err)
			}
		})
		return p
	})
}
