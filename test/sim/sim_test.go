package sim

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

var (
	seeds   = flag.Int("seeds", 20, "how many seeds to play beside the kept ones; every second one with many machines, too, half of those with several servers, and half of either with Git saying things about nodes")
	first   = flag.Uint64("first", 1, "the first of them")
	seed    = flag.Uint64("seed", 0, "play this seed alone and print what happens")
	plain   = flag.Bool("plain", false, "play the one seed without claims, autoscalers and CronJobs")
	many    = flag.Bool("many", false, "play the one seed with many machines")
	several = flag.Bool("several", false, "play the one seed with several servers")
	looked  = flag.Bool("tended", false, "play the one seed, with many machines or several servers, with Git saying things about nodes")
	times   = flag.Int("times", 1, "how often to play the one seed")
)

// TestMain refuses what cannot be meant.
func TestMain(m *testing.M) {
	flag.Parse()
	if *seeds < 0 || *times < 1 {
		fmt.Fprintln(os.Stderr, "-seeds must not be negative and -times at least 1")
		os.Exit(2)
	}
	// A world is garbage soon, and small: collecting it less often costs 100 MiB
	// and saves a fifth of the time.
	debug.SetGCPercent(400)
	sweepEnded()
	os.Exit(m.Run())
}

// memory is where there is a file system in memory: virtual time does not wait
// for disks, but the test does. The names of worlds begin with worldPrefix and
// the id of the process that plays them.
const (
	memory      = "/dev/shm"
	worldPrefix = "tally-sim-"
)

// sweepEnded takes the worlds away that tests left which were killed.
func sweepEnded() {
	dirs, _ := filepath.Glob(filepath.Join(memory, worldPrefix+"*"))
	for _, dir := range dirs {
		id, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), worldPrefix), "-")
		if _, err := os.Stat("/proc/" + id); errors.Is(err, fs.ErrNotExist) {
			_ = os.RemoveAll(dir) // somebody else's stays
		}
	}
}

// play runs one seed in a bubble of its own.
func play(t *testing.T, o Options) (r Result) {
	dir, err := os.MkdirTemp(memory, worldPrefix+strconv.Itoa(os.Getpid())+"-")
	if err != nil {
		dir = t.TempDir()
	}
	defer os.RemoveAll(dir)
	o.Dir = dir
	synctest.Test(t, func(*testing.T) { r = Run(o) })
	return r
}

// keptSeeds failed once; those with the word plain, before there
// were claims, autoscalers and CronJobs; those with the word many, with many machines; with
// the word several, with several servers as well; with the word tended, with Git
// saying things about nodes.
func keptSeeds(t *testing.T) []Options {
	text, err := os.ReadFile("testdata/seeds.txt")
	if err != nil {
		t.Fatal(err)
	}
	var list []Options
	for line := range strings.Lines(string(text)) {
		number, _, _ := strings.Cut(line, "#")
		words := strings.Fields(number)
		if len(words) == 0 {
			continue
		}
		n, err := strconv.ParseUint(words[0], 10, 64)
		if err != nil {
			t.Fatalf("testdata/seeds.txt: %v", err)
		}
		is := func(kind string) bool { return slices.Contains(words[1:], kind) }
		list = append(list, Options{Seed: n, Plain: is("plain"), Many: is("many"), Several: is("several"), Tended: is("tended")})
	}
	return list
}

// chosenSeeds are those of this run.
func chosenSeeds(t *testing.T) []Options {
	if *seed != 0 {
		return slices.Repeat([]Options{{Seed: *seed, Plain: *plain, Many: *many, Several: *several, Tended: *looked}}, *times)
	}
	list := keptSeeds(t)
	for n := range *seeds {
		list = append(list, Options{Seed: *first + uint64(n)})
		if n%2 == 0 {
			list = append(list, Options{Seed: *first + uint64(n), Many: n%4 == 0, Several: n%4 == 2, Tended: n%8 >= 4})
		}
	}
	return list
}

// TestInvariantsHold plays all seeds, one on each processor at a time.
func TestInvariantsHold(t *testing.T) {
	list := chosenSeeds(t)
	var next atomic.Int64
	var sums sums
	t.Run("seeds", func(t *testing.T) {
		for shard := range runtime.GOMAXPROCS(0) {
			t.Run(fmt.Sprint(shard), func(t *testing.T) {
				t.Parallel()
				for i := next.Add(1) - 1; i < int64(len(list)); i = next.Add(1) - 1 {
					t.Run(fmt.Sprint(list[i].Seed), func(t *testing.T) {
						r := play(t, list[i])
						sums.add(&r)
						judge(t, list[i], r)
					})
				}
			})
		}
	})
	t.Logf("%d seeds: %v", len(list), &sums)
}

// judge prints what happened in a seed that failed, and how to see it again.
// sums of many runs. Safe for concurrent use.
type sums struct {
	mu sync.Mutex
	Result
}

func (s *sums) add(r *Result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Steps += r.Steps
	s.Pods += r.Pods
	s.Faults += r.Faults
	s.Revisions += r.Revisions
	s.Volumes += r.Volumes
	s.Ends += r.Ends
	s.Away += r.Away
	s.Killed += r.Killed
}

func (s *sums) String() string {
	return fmt.Sprintf("%d revisions, %d faults, %d pods, %d volumes with data of which %d were to end, %d pods given away, %d killed by keepers, %d steps of the planner",
		s.Revisions, s.Faults, s.Pods, s.Volumes, s.Ends, s.Away, s.Killed, s.Steps)
}

// kind is the flag that plays a seed as this one.
func (o Options) kind() string {
	if o.Tended {
		o.Tended = false
		return o.kind() + " -tended"
	}
	switch {
	case o.Plain:
		return " -plain"
	case o.Many:
		return " -many"
	case o.Several:
		return " -several"
	}
	return ""
}

func judge(t *testing.T, played Options, r Result) {
	if r.Err == nil && !(testing.Verbose() && *seed != 0) {
		return
	}
	for _, line := range r.Trace {
		t.Log(line)
	}
	if r.Err != nil {
		t.Errorf("seed %d: %v\nagain: go test ./test/sim -run TestInvariantsHold -v -seed=%d%s -times=20\nkeep it in testdata/seeds.txt", played.Seed, r.Err, played.Seed, played.kind())
	}
}
