package containerd

import (
	"context"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// drip is a registry that sends a byte after each of its pauses, then nothing.
type drip struct {
	remotes.Resolver
	ctx    context.Context
	pauses []time.Duration
}

func (d *drip) Fetcher(context.Context, string) (remotes.Fetcher, error) {
	return remotes.FetcherFunc(func(ctx context.Context, _ ocispec.Descriptor) (io.ReadCloser, error) {
		d.ctx = ctx
		return io.NopCloser(d), nil
	}), nil
}

func (d *drip) Read(p []byte) (int, error) {
	if len(d.pauses) == 0 {
		<-d.ctx.Done()
		return 0, d.ctx.Err()
	}
	time.Sleep(d.pauses[0])
	d.pauses = d.pauses[1:]
	return copy(p, "x"), nil
}

// fetch reads a layer to its end, then takes a while to unpack it.
func fetch(ctx context.Context, m *meter, from remotes.Resolver, unpack time.Duration) (*image, error) {
	fetcher, err := metered{from, m}.Fetcher(ctx, "x")
	if err != nil {
		return nil, err
	}
	body, err := fetcher.Fetch(ctx, ocispec.Descriptor{})
	if err != nil {
		return nil, err
	}
	_, err = io.ReadFull(body, make([]byte, 3))
	if err := body.Close(); err != nil {
		return nil, err
	}
	if err != nil {
		return nil, err
	}
	time.Sleep(unpack)
	return &image{}, ctx.Err()
}

func TestPullEndsWhenNothingComes(t *testing.T) {
	const least = time.Minute
	for _, c := range []struct {
		name   string
		pauses []time.Duration
		fails  bool
	}{
		{"slow, then unpacked for long", []time.Duration{4 * least, 4 * least, 4 * least}, false},
		{"stuck at once", nil, true},
		{"stuck later", []time.Duration{4 * least, 4 * least}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var p pulls
				named, err := normalize("registry.test/app:v1")
				if err != nil {
					t.Fatal(err)
				}
				began, expected := time.Now(), defaultPatience
				for _, pause := range c.pauses {
					expected += pause
				}
				_, err = p.share(t.Context(), "key", nil, func(ctx context.Context, m *meter) (*image, error) {
					return fetch(ctx, m, &drip{pauses: c.pauses}, time.Hour)
				})
				if !c.fails {
					if err != nil {
						t.Error(err)
					}
					return
				}
				if err == nil || !strings.HasSuffix(explainPull(named, err).Error(), "registry.test has sent nothing for 5m0s") {
					t.Errorf("it ended with %v", err)
				}
				if took := time.Since(began); took != expected {
					t.Errorf("it ended after %s, want %s", took, expected)
				}
			})
		})
	}
}
