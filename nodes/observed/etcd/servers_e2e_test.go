//go:build e2e

package etcd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/nodes/observed"
	"github.com/tallyman-dev/tallyman/test/etcdtest"
)

// storeVariable makes the test's binary a server that only counts.
const storeVariable = "TALLY_TEST_COUNT_IN"

func TestMain(m *testing.M) {
	if address := os.Getenv(storeVariable); address != "" {
		count(address)
		return
	}
	os.Exit(m.Run())
}

// numbers is how many decisions bear the number that is counted: more than one
// transaction takes.
const numbers = 3 * maxOps

// count is a server that leads when it can, reads the number that all decisions
// bear, and decides that they bear the next one. It says so when that is
// recorded, as a server hands things out then.
func count(address string) {
	endpoints, prefix, err := ParseAddress(address)
	if err != nil {
		panic(err)
	}
	c, err := Open(Options{Endpoints: endpoints, Prefix: prefix, Fingerprint: "this", Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		panic(err)
	}
	for {
		term, err := c.Campaign(context.Background(), "", func(string) {})
		if err != nil {
			panic(err)
		}
		err = term.Lead(context.Background(), func(ctx context.Context) error { return countIn(ctx, term) })
		fmt.Fprintln(os.Stderr, "the term is over:", err)
	}
}

func countIn(ctx context.Context, term *Term) error {
	r, err := term.Record(ctx)
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		number, err := numberIn(ctx, r)
		if err != nil {
			return err
		}
		err = r.Write(ctx, numbered(number+1))
		switch {
		case errors.Is(err, ErrDeposed):
			return err
		case err == nil && term.Leads():
			fmt.Println("made", number+1, term.Revision())
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil
}

func numbered(n int) (changes []observed.Change) {
	for i := range numbers {
		changes = append(changes, decision(fmt.Sprintf("%04d", i), fmt.Sprint(n)))
	}
	return changes
}

// numberIn is the number that all decisions bear; 0 if there are none.
func numberIn(ctx context.Context, b observed.Backend) (n int, err error) {
	all, err := b.Decisions(ctx)
	if err != nil || len(all) == 0 {
		return 0, err
	}
	for _, d := range all {
		if string(d.Value) != string(all[0].Value) || len(all) != numbers {
			fmt.Println("torn", len(all), string(all[0].Value), d.Key, string(d.Value))
		}
	}
	_, err = fmt.Sscan(string(all[0].Value), &n)
	return n, err
}

// counters are the servers, and what they say.
type counters struct {
	t       *testing.T
	address string

	mu        sync.Mutex
	processes []*exec.Cmd
	// made are numbers and the term in which each was made; leader made the newest.
	made   map[int]int64
	newest int
	leader int
}

func (c *counters) start(i int) {
	c.t.Helper()
	process := exec.Command(os.Args[0])
	process.Env = append(os.Environ(), storeVariable+"="+c.address)
	process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := process.StdoutPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	if err := process.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.processes[i] = process
	go func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			c.hear(i, lines.Text())
		}
	}()
}

func (c *counters) hear(i int, text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var n int
	var term int64
	if _, err := fmt.Sscanf(text, "made %d %d", &n, &term); err != nil {
		c.t.Errorf("server %d says: %s", i, text)
		return
	}
	if before, twice := c.made[n]; twice {
		c.t.Errorf("%d was made twice, in term %d and in term %d", n, before, term)
	}
	c.made[n] = term
	if n > c.newest {
		c.newest, c.leader = n, i
	}
}

func (c *counters) state() (newest, leader int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.newest, c.leader
}

// progress waits until a server for which ok holds leads and 20 numbers were made since.
func (c *counters) progress(what string, ok func(leader int) bool) {
	c.t.Helper()
	before, _ := c.state()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if newest, leader := c.state(); newest > before+20 && ok(leader) {
			return
		}
	}
	c.t.Fatalf("no progress after %s", what)
}

func anybody(int) bool { return true }

func (c *counters) kill(i int) {
	_ = c.processes[i].Process.Kill()
	_ = c.processes[i].Wait() // says that it was killed
}

func (c *counters) signal(i int, s syscall.Signal) {
	c.t.Helper()
	if err := c.processes[i].Process.Signal(s); err != nil {
		c.t.Fatal(err)
	}
}

// TestNothingIsDecidedTwice has three servers that count in an etcd of three
// members, and faults of every kind.
func TestNothingIsDecidedTwice(t *testing.T) {
	cluster := etcdtest.Start(t, etcdtest.Options{Members: 3})
	c := &counters{t: t, address: cluster.Address("count"), processes: make([]*exec.Cmd, 3), made: map[int]int64{}}
	for i := range c.processes {
		c.start(i)
	}
	t.Cleanup(func() {
		for i := range c.processes {
			c.kill(i)
		}
	})
	c.progress("the start", anybody)

	for range 2 {
		_, leader := c.state()
		c.kill(leader)
		c.progress("the leader was killed", func(i int) bool { return i != leader })
		c.start(leader)

		_, leader = c.state()
		c.signal(leader, syscall.SIGSTOP)
		c.progress("the leader was stopped", func(i int) bool { return i != leader })
		c.signal(leader, syscall.SIGCONT)
		c.progress("it went on", func(i int) bool { return i != leader })
	}
	for i := range 3 {
		cluster.Kill(i)
		c.progress("a member of etcd was killed", anybody)
		cluster.StartMember(i)
		c.progress("it was back", anybody)
		cluster.Await()
	}
	cluster.Pause(0)
	c.progress("a member of etcd was stopped", anybody)
	cluster.Continue(0)
	c.progress("it went on", anybody)

	cluster.Kill(0)
	cluster.Kill(1)
	time.Sleep(2 * attemptTimeout) // what was asked before is answered or given up
	before, _ := c.state()
	time.Sleep(8 * time.Second)
	if after, _ := c.state(); after != before {
		t.Errorf("%d was made while etcd had no majority", after)
	}
	cluster.StartMember(0)
	cluster.StartMember(1)
	c.progress("etcd was back", anybody)

	for i := range c.processes {
		c.kill(i)
	}
	c.check(cluster)
}

// check holds what the servers said to each other and to what is recorded.
func (c *counters) check(cluster *etcdtest.Cluster) {
	b := openRecord(c.t, lead(c.t, open(c.t, c.address, nil)))
	recorded, err := numberIn(c.t.Context(), b)
	if err != nil {
		c.t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if recorded < c.newest {
		c.t.Errorf("%d was made, %d is recorded", c.newest, recorded)
	}
	var term int64
	for n := range recorded + 1 {
		if made := c.made[n]; made != 0 && made < term {
			c.t.Errorf("%d was made in term %d after others were made in term %d", n, made, term)
		} else if made != 0 {
			term = made
		}
	}
	c.t.Logf("%d numbers in %d of etcd's keys", recorded, len(cluster.Values(cluster.Client("", ""), strings.TrimPrefix("count", "/"))))
}
