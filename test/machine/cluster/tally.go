package cluster

import (
	"context"
	"fmt"
	"path/filepath"
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
	m.tally = m.Start("tally", args...)
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
