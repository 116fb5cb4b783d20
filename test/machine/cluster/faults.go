package cluster

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// do fails the test when a fault could not be made.
func (m *Machine) do(err error) {
	m.c.t.Helper()
	if err != nil {
		m.c.t.Fatalf("machine %s: %v", m.Name, err)
	}
}

// Partition cuts the machine off from everyone, the test included.
func (m *Machine) Partition() {
	m.c.t.Helper()
	m.Mute()
	m.Deafen()
}

// Mute loses what the machine sends; what others send still arrives.
func (m *Machine) Mute() { m.c.t.Helper(); m.do(m.c.cables.drop(m.Name, from, 1)) }

// Deafen loses what is sent to the machine; what it sends still arrives.
func (m *Machine) Deafen() { m.c.t.Helper(); m.do(m.c.cables.drop(m.Name, to, 1)) }

// Lose loses each packet of the machine, in both directions, with a probability.
func (m *Machine) Lose(probability float64) {
	m.c.t.Helper()
	m.do(m.c.cables.drop(m.Name, from, probability))
	m.do(m.c.cables.drop(m.Name, to, probability))
}

// Delay holds back each packet of the machine, in both directions.
func (m *Machine) Delay(by time.Duration) { m.c.t.Helper(); m.do(m.c.cables.delay(m.Name, by)) }

// Mend makes the machine's cable as good as new.
func (m *Machine) Mend() { m.c.t.Helper(); m.do(m.c.cables.mend(m.Name)) }

// fillFile takes the room on a machine's data disk.
const fillFile = dataDir + "/fill"

// FillDisk leaves no room where tally keeps its data; see SmallDisk.
func (m *Machine) FillDisk() {
	m.c.t.Helper()
	f, err := os.Create(m.File(fillFile))
	m.do(err)
	defer f.Close()
	for size := 1 << 20; size > 0; {
		if _, err := f.Write(make([]byte, size)); err != nil {
			size /= 2
		}
	}
}

// FreeDisk gives the room back.
func (m *Machine) FreeDisk() { m.c.t.Helper(); m.do(os.Remove(m.File(fillFile))) }

// Requests to a file system, from linux/fs.h.
const (
	fifreeze = 0xc0045877
	fithaw   = 0xc0045878
)

// FreezeDisk has whoever writes tally's data wait, as on a disk that hangs, until
// ThawDisk; see SmallDisk.
func (m *Machine) FreezeDisk() {
	m.c.t.Helper()
	m.do(m.tellDisk(fifreeze))
	m.frozen = true
}

// ThawDisk has everyone go on who waits for the disk; it does nothing to one that
// is not frozen.
func (m *Machine) ThawDisk() {
	m.c.t.Helper()
	if m.frozen {
		m.do(m.tellDisk(fithaw))
		m.frozen = false
	}
}

func (m *Machine) tellDisk(request uint) error {
	f, err := os.Open(m.File(dataDir))
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.IoctlSetInt(int(f.Fd()), request, 0)
}
