package sim

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

var (
	seeds = flag.Int("seeds", 20, "how many seeds to play beside the kept ones")
	first = flag.Uint64("first", 1, "the first of them")
	seed  = flag.Uint64("seed", 0, "play this seed alone and print what happens")
	times = flag.Int("times", 1, "how often to play the one seed")
)

// TestMain refuses what cannot be meant.
func TestMain(m *testing.M) {
	flag.Parse()
	if *seeds < 0 || *times < 1 {
		fmt.Fprintln(os.Stderr, "-seeds must not be negative and -times at least 1")
		os.Exit(2)
	}
	os.Exit(m.Run())
}

// storage is a directory in memory where there is one: virtual time does not
// wait for disks, but the test does.
func storage(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "tally-sim-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// play runs one seed in a bubble of its own.
func play(t *testing.T, o Options) (r Result) {
	o.Dir = storage(t)
	synctest.Test(t, func(*testing.T) { r = Run(o) })
	return r
}

// keptSeeds failed once.
func keptSeeds(t *testing.T) []uint64 {
	text, err := os.ReadFile("testdata/seeds.txt")
	if err != nil {
		t.Fatal(err)
	}
	var list []uint64
	for line := range strings.Lines(string(text)) {
		number, _, _ := strings.Cut(line, "#")
		if number = strings.TrimSpace(number); number == "" {
			continue
		}
		n, err := strconv.ParseUint(number, 10, 64)
		if err != nil {
			t.Fatalf("testdata/seeds.txt: %v", err)
		}
		list = append(list, n)
	}
	return list
}

// chosenSeeds are those of this run.
func chosenSeeds(t *testing.T) []uint64 {
	if *seed != 0 {
		list := make([]uint64, *times)
		for i := range list {
			list[i] = *seed
		}
		return list
	}
	list := keptSeeds(t)
	for n := range *seeds {
		list = append(list, *first+uint64(n))
	}
	return list
}

// TestInvariantsHold plays all seeds, one on each processor at a time.
func TestInvariantsHold(t *testing.T) {
	list := chosenSeeds(t)
	var next, steps, pods, faults, revisions atomic.Int64
	t.Run("seeds", func(t *testing.T) {
		for shard := range runtime.GOMAXPROCS(0) {
			t.Run(fmt.Sprint(shard), func(t *testing.T) {
				t.Parallel()
				for i := next.Add(1) - 1; i < int64(len(list)); i = next.Add(1) - 1 {
					t.Run(fmt.Sprint(list[i]), func(t *testing.T) {
						r := play(t, Options{Seed: list[i]})
						steps.Add(int64(r.Steps))
						pods.Add(int64(r.Pods))
						faults.Add(int64(r.Faults))
						revisions.Add(int64(r.Revisions))
						judge(t, list[i], r)
					})
				}
			})
		}
	})
	t.Logf("%d seeds: %d revisions, %d faults, %d pods, %d steps of the planner", len(list), revisions.Load(), faults.Load(), pods.Load(), steps.Load())
}

// judge prints what happened in a seed that failed, and how to see it again.
func judge(t *testing.T, played uint64, r Result) {
	if r.Err == nil && !(testing.Verbose() && *seed != 0) {
		return
	}
	for _, line := range r.Trace {
		t.Log(line)
	}
	if r.Err != nil {
		t.Errorf("seed %d: %v\nagain: go test ./test/sim -run TestInvariantsHold -v -seed=%d -times=20\nkeep it in testdata/seeds.txt", played, r.Err, played)
	}
}
