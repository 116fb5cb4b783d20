//go:build e2e

package machine

import (
	"net"
	"os"
	"strings"
	"testing"
)

func TestMain(m *testing.M) { Main(m) }

func TestTheMachineIsItsOwn(t *testing.T) {
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	if len(links) == 0 || links[0].Name != "lo" || links[0].Flags&net.FlagUp == 0 {
		t.Errorf("interfaces: %v, want loopback, up", links)
	}
	for _, link := range links {
		if link.Name == "eth0" {
			t.Error("the outer machine's network is visible")
		}
	}
	if os.Getpid() > 100 {
		t.Errorf("process id %d: not in a process namespace of its own", os.Getpid())
	}
	entries, err := os.ReadDir("/run")
	if err != nil || len(entries) != 0 {
		t.Errorf("/run holds %v (%v), want nothing", entries, err)
	}
	groups, err := os.ReadFile("/proc/self/cgroup")
	if text := string(groups); err != nil || !strings.Contains(text, ":/"+ProcessGroup) || strings.Contains(text, "tally-test") || strings.Contains(text, "..") {
		t.Errorf("the tests are in the control groups %s (%v)", text, err)
	}
	all, err := Hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range all {
		entries, err := os.ReadDir(h.Point)
		for _, e := range entries {
			if e.IsDir() && e.Name() != ProcessGroup || err != nil {
				t.Errorf("%s shows the group %s, which is not the tests' (%v)", h.Point, e.Name(), err)
			}
		}
	}
}
