package cluster

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/status/client"
	"github.com/tallyman-dev/tallyman/test/machine"
)

// StartTally starts a long-running command of tally: up, server or agent. Its
// log is tally.log.
func (m *Machine) StartTally(args ...string) {
	m.c.t.Helper()
	m.args = args
	m.tally = m.startBy(m.clock, "tally", args...)
}

// TallyProcess is what StartTally started last.
func (m *Machine) TallyProcess() *Process { return m.tally }

// StartTallyAgain starts the command that ran last with the binary that is
// installed now.
func (m *Machine) StartTallyAgain() { m.c.t.Helper(); m.StartTally(m.args...) }

// Keeper is the process id of the machine's keeper; 0 when it has none.
func (m *Machine) Keeper() int {
	for _, pid := range m.Processes(" keeper ", "--data-dir") {
		return pid
	}
	return 0
}

// AwaitReady waits until the server on this machine says that it is ready.
func (m *Machine) AwaitReady() {
	m.c.t.Helper()
	web := m.Client()
	m.c.Eventually(patience, "the server on "+m.Name+" is ready", func() error {
		select {
		case <-m.tally.ended:
			m.c.t.Fatalf("tally on %s ended", m.Name)
		default:
		}
		answer, err := web.Get("http://" + machine.PageAddress + "/readyz")
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if answer.StatusCode != 200 {
			return fmt.Errorf("%s", answer.Status)
		}
		return nil
	})
}

// Clone makes a working copy of the embedded remote of the server on this machine.
func (m *Machine) Clone() *machine.Clone {
	m.c.t.Helper()
	return machine.NewClone(m.c.t, m, "http://"+machine.PageAddress+"/repo.git", "!tally git-credential")
}

// Overview is what the server on this machine shows now.
func (m *Machine) Overview() (*nodes.Overview, error) {
	c, err := client.New(client.Options{Socket: m.File("/run/tallyman/tally.sock")})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return c.Overview(ctx)
}

// LogHas tells whether the log of the machine's tally holds a text.
func (m *Machine) LogHas(text string) bool {
	return strings.Contains(readLog(filepath.Join(m.dir, "tally.log")), text)
}

// JoinLine is what tally token create on this machine says to paste on a new
// one, without "tally".
func (m *Machine) JoinLine(flags ...string) []string {
	m.c.t.Helper()
	var line []string
	m.c.Eventually(patience, "a token is made", func() error {
		r := m.Tally("token", append([]string{"create"}, flags...)...)
		line = strings.Fields(r.Out)
		if r.Code != 0 || len(line) < 2 || line[0] != "tally" {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
	return line[1:]
}

// Join starts the machine's agent with a token of a server and more flags.
func (m *Machine) Join(server *Machine, flags ...string) {
	m.c.t.Helper()
	m.StartTally(append(server.JoinLine(), flags...)...)
}

// AwaitNodes waits until the server on this machine counts all of these as ready.
func (m *Machine) AwaitNodes(all ...*Machine) {
	m.c.t.Helper()
	m.c.Eventually(patience, "all nodes are ready", func() error {
		o, err := m.Overview()
		if err != nil {
			return err
		}
		for _, one := range all {
			i := slices.IndexFunc(o.Nodes, func(n nodes.NodeOverview) bool { return n.Name == one.Name })
			if i < 0 {
				return fmt.Errorf("no node %s", one.Name)
			}
			if !o.Nodes[i].Ready {
				return fmt.Errorf("node %s: %s", one.Name, o.Nodes[i].Reason)
			}
		}
		return nil
	})
}

// LoseDisk deletes all that tally keeps here, except what is named. It does not run.
func (m *Machine) LoseDisk(except ...string) {
	m.c.t.Helper()
	entries, err := os.ReadDir(m.File(dataDir))
	m.do(err)
	for _, e := range entries {
		if !slices.Contains(except, e.Name()) {
			m.do(os.RemoveAll(filepath.Join(m.File(dataDir), e.Name())))
		}
	}
}

// Containers are the living processes of the program in all containers of the
// machine whose command line contains the words, with the instants of their
// starts: a container that restarted has another.
func (m *Machine) Containers(words ...string) []string {
	if m.life == nil {
		return nil
	}
	var found []string
	for _, pid := range m.Processes(append(words, programPath)...) {
		if born := born(pid); born != "" {
			found = append(found, fmt.Sprintf("%s: %d born %s", m.Name, pid, born))
		}
	}
	return found
}

// programPath is where images made by PushImage have their program.
const programPath = "/program"

// born is when a process started, in the kernel's ticks; empty when it has ended.
func born(pid int) string {
	content, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return ""
	}
	fields := strings.Fields(string(content[bytes.LastIndexByte(content, ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" {
		return ""
	}
	return fields[19]
}
