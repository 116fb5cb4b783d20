//go:build e2e

package bench

import (
	"testing"

	"github.com/tallyman-dev/tallyman/test/machine/cluster"
)

func TestMain(m *testing.M) { cluster.Main(m) }

// TestBench measures everything; -run TestBench/pods measures a part, and
// leaves the other figures in build/bench.json as they are.
func TestBench(t *testing.T) {
	all := &figures{}
	t.Run("size", func(t *testing.T) { benchSize(t, all) })
	t.Run("planner", func(t *testing.T) { benchPlanner(t, all) })
	t.Run("routes", func(t *testing.T) { benchRoutes(t, all) })
	t.Run("pods", func(t *testing.T) { benchPods(t, all) })
	t.Run("many", func(t *testing.T) { benchMany(t, all) })
	t.Run("scale", func(t *testing.T) { benchScale(t, all) })
	t.Run("cluster", func(t *testing.T) { benchCluster(t, all) })
	t.Run("traffic", func(t *testing.T) { benchTraffic(t, all) })
	t.Run("idle", func(t *testing.T) { benchIdle(t, all) })
	t.Run("lost", func(t *testing.T) { benchLost(t, all) })
	t.Run("repository", func(t *testing.T) { benchRepositories(t, all) })
	all.write(t)
}
