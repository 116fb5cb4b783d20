package status

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
)

// torrent is a cluster that never stops changing.
type torrent struct{ Cluster }

func (torrent) Watch(ctx context.Context) <-chan *nodes.Overview {
	out := make(chan *nodes.Overview)
	go func() {
		defer close(out)
		for serial := uint64(1); ; serial++ {
			select {
			case <-ctx.Done():
				return
			case out <- &nodes.Overview{Serial: serial}:
			}
		}
	}()
	return out
}

// TestWatchersAreServedAsTheyCost: what takes long to show is shown less often.
func TestWatchersAreServedAsTheyCost(t *testing.T) {
	for _, test := range []struct{ least, costs, apart time.Duration }{
		{least: 0, costs: time.Millisecond, apart: 10 * time.Millisecond},
		{least: calm, costs: time.Millisecond, apart: calm + time.Millisecond},
		{least: calm, costs: 100 * time.Millisecond, apart: time.Second},
		{least: calm, costs: 2 * time.Second, apart: 2*time.Second + longest},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			begun, shown := time.Now(), 0
			for range overviews(ctx, torrent{}, test.least) {
				if got := time.Since(begun); got != time.Duration(shown)*test.apart {
					t.Errorf("costs %s: shown after %s, want %s", test.costs, got, time.Duration(shown)*test.apart)
				}
				if shown++; shown > 3 {
					return
				}
				time.Sleep(test.costs)
			}
		})
	}
}
