//go:build e2e

package cluster_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/test/machine/cluster"
)

func TestMain(m *testing.M) { cluster.Main(m) }

const patience = 30 * time.Second

// TestMachines looks that machines are apart, keep what they should, and lose
// what they should when they die.
func TestMachines(t *testing.T) {
	c := cluster.New(t)
	one, two := c.Machine("one"), c.Machine("two")
	for _, m := range []*cluster.Machine{one, two} {
		if r := m.Run("hostname"); strings.TrimSpace(r.Out) != m.Name {
			t.Errorf("host name of %s: %+v", m.Name, r)
		}
	}
	run(t, one, "touch /run/volatile /var/lib/kept /etc/kept /root/kept /usr/local/kept /var/lib/tallyman/kept")
	if r := two.Run("sh", "-c", "ls /run/volatile /var/lib/kept /etc/kept /root/kept /usr/local/kept"); r.Code == 0 || r.Out != "" {
		t.Errorf("two sees files of one: %+v", r)
	}
	boot := run(t, one, "cat /proc/sys/kernel/random/boot_id")
	if boot == run(t, two, "cat /proc/sys/kernel/random/boot_id") {
		t.Error("two machines have one boot")
	}
	if up := strings.Fields(run(t, one, "cat /proc/uptime"))[0]; len(up) > 5 {
		t.Errorf("up for %s seconds already", up)
	}
	sleeper := one.Start("sleep", "1000")
	c.Eventually(time.Minute, "the machine has one more process", func() error {
		if found := one.Processes("sleep 1000"); len(found) != 1 || found[0] != sleeper.PID() {
			return fmt.Errorf("%v, want %d", found, sleeper.PID())
		}
		return nil
	})
	if found := two.Processes("sleep 1000"); len(found) != 0 {
		t.Errorf("two has the process %v of one", found)
	}
	// What is not mounted stays at the root.
	if groups := run(t, one, "cat /proc/self/cgroup"); !strings.Contains(groups, ":/machine") || strings.Contains(groups, "..") || strings.Contains(groups, "tally-test") {
		t.Errorf("control groups of one: %s", groups)
	}

	one.Die()
	<-sleeper.Ended()
	if _, err := os.Stat(one.File("/var/lib/kept")); err != nil {
		t.Error(err)
	}
	one.Boot()
	run(t, one, "ls /var/lib/kept /etc/kept /root/kept /usr/local/kept /var/lib/tallyman/kept")
	if r := one.Run("ls", "/run/volatile"); r.Code == 0 {
		t.Error("/run outlived the machine")
	}
	if again := run(t, one, "cat /proc/sys/kernel/random/boot_id"); again == boot {
		t.Error("it did not boot again")
	}
}

// run runs shell text that must work.
func run(t *testing.T, m *cluster.Machine, text string) string {
	t.Helper()
	r := m.Run("sh", "-c", text)
	if r.Code != 0 {
		t.Fatalf("%s: %s: %+v", m.Name, text, r)
	}
	return strings.TrimSpace(r.Out)
}

// echo answers every packet on a machine.
func echo(t *testing.T, m *cluster.Machine) {
	t.Helper()
	var socket net.PacketConn
	var failure error
	if err := m.InNetwork(func() { socket, failure = net.ListenPacket("udp", m.Address+":7") }); err != nil || failure != nil {
		t.Fatal(err, failure)
	}
	t.Cleanup(func() { socket.Close() })
	go func() {
		for buffer := make([]byte, 1500); ; {
			n, from, err := socket.ReadFrom(buffer)
			if err != nil {
				return
			}
			socket.WriteTo(buffer[:n], from)
		}
	}()
}

// ask sends a packet and tells how long the answer took.
func ask(t *testing.T, from, to *cluster.Machine, wait time.Duration) (time.Duration, error) {
	t.Helper()
	connection, err := from.Dial(t.Context(), "udp", to.Address+":7")
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	begun := time.Now()
	connection.SetDeadline(begun.Add(wait))
	if _, err := connection.Write([]byte("hello")); err != nil {
		return 0, err
	}
	_, err = connection.Read(make([]byte, 1500))
	return time.Since(begun), err
}

// TestCables cuts them in every way and mends them again.
func TestCables(t *testing.T) {
	c := cluster.New(t)
	one, two, three := c.Machine("one"), c.Machine("two"), c.Machine("three")
	echo(t, one)
	echo(t, two)
	reaches := func(from, to *cluster.Machine) {
		t.Helper()
		c.Eventually(patience, from.Name+" reaches "+to.Name, func() error { _, err := ask(t, from, to, time.Second); return err })
	}
	cut := func(from, to *cluster.Machine) {
		t.Helper()
		if _, err := ask(t, from, to, 300*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s asks %s: %v, want silence", from.Name, to.Name, err)
		}
	}
	reaches(three, one)
	reaches(one, two)
	for name, fault := range map[string]func(){"partition": one.Partition, "mute": one.Mute, "deafen": one.Deafen} {
		t.Run(name, func(t *testing.T) {
			fault()
			cut(one, two)
			cut(three, one)
			reaches(three, two)
			one.Mend()
			reaches(one, two)
		})
	}
	t.Run("loss", func(t *testing.T) {
		one.Lose(0.5)
		lost := 0
		for range 40 {
			if _, err := ask(t, three, one, 50*time.Millisecond); err != nil {
				lost++
			}
		}
		if lost < 10 || lost == 40 {
			t.Errorf("%d of 40 lost, want about 30", lost)
		}
		one.Mend()
		reaches(three, one)
	})
	t.Run("delay", func(t *testing.T) {
		one.Delay(100 * time.Millisecond)
		reaches(three, one)
		if took, err := ask(t, three, one, 5*time.Second); err != nil || took < 200*time.Millisecond {
			t.Errorf("answered after %s, %v, want 200 ms at least", took, err)
		}
		one.Mute()
		cut(one, two)
		one.Mend()
		reaches(three, one)
		quick := errors.New("not asked")
		for range 50 { // one of many is enough: the machine may be busy
			took, err := ask(t, three, one, 5*time.Second)
			if quick = err; err == nil && took > 150*time.Millisecond {
				quick = fmt.Errorf("answered after %s", took)
			}
			if quick == nil {
				break
			}
		}
		if quick != nil {
			t.Errorf("mended: %v", quick)
		}
	})
	t.Run("death", func(t *testing.T) {
		one.Delay(time.Millisecond)
		one.Die()
		cut(three, one)
		one.Boot()
		echo(t, one)
		reaches(three, one)
	})
}

// TestDisk fills a small disk.
func TestDisk(t *testing.T) {
	c := cluster.New(t)
	m := c.MachineOff("one")
	m.SmallDisk(16 << 20)
	m.Boot()
	run(t, m, "echo first > /var/lib/tallyman/first")
	m.FillDisk()
	if r := m.Run("sh", "-c", "head -c 100000 /dev/zero > /var/lib/tallyman/second"); r.Code == 0 || !strings.Contains(r.Err, "No space left") {
		t.Errorf("writing to a full disk: %+v", r)
	}
	m.FreeDisk()
	run(t, m, "head -c 100000 /dev/zero > /var/lib/tallyman/second")
	m.Die()
	m.Boot()
	if got := run(t, m, "cat /var/lib/tallyman/first"); got != "first" {
		t.Errorf("after a reboot: %q", got)
	}
}

const pod = `apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec: {containers: [{name: main, image: IMAGE}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: 30080}]}
`

// TestTallyRuns has two machines that are clusters of their own, to see that a
// machine is good enough for one: a pod runs, is reached from the other machine,
// and runs again after its machine died.
func TestTallyRuns(t *testing.T) {
	c := cluster.New(t)
	image := c.PushImage("github.com/tallyman-dev/tallyman/test/e2e/inside", "inside:1")
	one, two := c.Machine("one"), c.Machine("two")
	for _, m := range []*cluster.Machine{one, two} {
		m.StartTally("up")
		m.AwaitReady()
		clone := m.Clone()
		clone.Write("web.yaml", strings.ReplaceAll(pod, "IMAGE", image))
		clone.Apply("a pod")
	}
	answers := func(from *cluster.Machine) {
		t.Helper()
		c.Eventually(patience, from.Name+" reaches the pod of one", func() error { return get(from.Client(), "http://"+one.Address+":30080/") })
	}
	answers(two)
	c.Eventually(patience, "the test reaches the pod of one", func() error { return get(&http.Client{Timeout: time.Second}, "http://"+one.Address+":30080/") })
	if one.Keeper() == 0 || one.Keeper() == two.Keeper() {
		t.Errorf("keepers: %d and %d", one.Keeper(), two.Keeper())
	}
	one.TallyProcess().Signal(syscall.SIGSTOP)
	answers(two)
	one.TallyProcess().Signal(syscall.SIGCONT)

	one.Die()
	if err := get(two.Client(), "http://"+one.Address+":30080/"); err == nil {
		t.Error("a dead machine answers")
	}
	one.Boot()
	one.StartTallyAgain()
	answers(two)
}

func get(client *http.Client, url string) error {
	answer, err := client.Get(url)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err == nil && (answer.StatusCode != http.StatusOK || string(body) != "web") {
		err = fmt.Errorf("%s: %s", answer.Status, body)
	}
	return err
}

// TestAnOwnClock looks that the time of day of tally on one machine is what it is
// set to, that of others as it was.
func TestAnOwnClock(t *testing.T) {
	c := cluster.New(t)
	one, two := c.MachineOff("one"), c.MachineOff("two")
	for _, m := range []*cluster.Machine{one, two} {
		m.BootBare()
	}
	one.OwnClock()
	two.StartTally("server")
	for _, ahead := range []time.Duration{-30 * 365 * 24 * time.Hour, 30 * 365 * 24 * time.Hour} {
		one.SetClock(ahead)
		one.StartTally("server")
		year := time.Now().Add(ahead).Format("time=2006-")
		for m, want := range map[*cluster.Machine]string{one: year, two: "server runs"} {
			c.Eventually(patience, m.Name+" logs with "+want, func() error {
				if !m.LogHas(want) {
					return fmt.Errorf("it does not")
				}
				return nil
			})
		}
		if two.LogHas(year) {
			t.Errorf("the other machine has the clock of %s", year)
		}
		one.TallyProcess().Stop()
	}
}

// TestAFrozenDisk looks that nothing is written while a disk is frozen, and that
// all goes on after it.
func TestAFrozenDisk(t *testing.T) {
	c := cluster.New(t)
	one := c.MachineOff("one")
	one.SmallDisk(32 << 20)
	one.BootBare()
	for range 2 {
		one.FreezeDisk()
		writer := one.Start("sh", "-c", "echo begun; echo more > /var/lib/tallyman/file; echo done")
		said := func() string {
			content, err := os.ReadFile(one.Log("sh"))
			if err != nil {
				t.Fatal(err)
			}
			return string(content)
		}
		c.Eventually(patience, "the writer waits", func() error {
			state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", writer.PID()))
			if err == nil && !strings.Contains(string(state), ") D ") {
				err = fmt.Errorf("%s", state)
			}
			return err
		})
		if strings.HasSuffix(said(), "done\n") {
			t.Errorf("the writer said %q", said())
		}
		one.ThawDisk()
		<-writer.Ended()
		if !strings.HasSuffix(said(), "begun\ndone\n") {
			t.Errorf("the writer said %q", said())
		}
	}
	one.FreezeDisk()
	one.Start("sh", "-c", "echo more > /var/lib/tallyman/file")
	one.Die() // it does not wait for ever
}
