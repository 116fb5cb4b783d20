package remote_test

import (
	"context"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/sync/remote"
)

// BenchmarkPush is a whole git push of one changed file, with a Gate that
// takes no time. check-ms is from its start to the call of Gate.Check, follow-ms
// to the call of Gate.Follow.
func BenchmarkPush(b *testing.B) {
	for _, way := range []string{"http", "path"} {
		b.Run(way, func(b *testing.B) {
			var start time.Time
			var check, follow time.Duration
			w := newWorld(b, &gate{
				check: func(context.Context, remote.Push, io.Writer) error {
					check += time.Since(start)
					return nil
				},
				follow: func(context.Context, string, io.Writer) error {
					follow += time.Since(start)
					return nil
				},
			})
			target := map[string]string{"http": w.url, "path": w.bare}[way]
			for i := 0; b.Loop(); i++ {
				b.StopTimer()
				w.commit(fmt.Sprint(i))
				b.StartTimer()
				start = time.Now()
				w.git(w.clone, "push", "--quiet", target, "HEAD:main")
			}
			b.ReportMetric(float64(check.Milliseconds())/float64(b.N), "check-ms")
			b.ReportMetric(float64(follow.Milliseconds())/float64(b.N), "follow-ms")
		})
	}
}
