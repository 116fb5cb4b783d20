package network

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/tallyman-dev/tallyman/nodes"
)

func openStore(t *testing.T, path, cidr string) *addresses {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	s, err := openAddresses(db, netip.MustParsePrefix(cidr))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func take(t *testing.T, s *addresses, uid nodes.UID) string {
	t.Helper()
	addr, stored, err := s.take(uid)
	if err != nil {
		t.Fatal(err)
	}
	if err := stored(); err != nil {
		t.Fatal(err)
	}
	return addr.String()
}

func TestAddressesAreReusedLate(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "db"), "10.1.0.0/29") // 2 to 6 are free
	for i, want := range []string{"10.1.0.2", "10.1.0.3", "10.1.0.4"} {
		if got := take(t, s, nodes.UID(fmt.Sprint(i))); got != want {
			t.Errorf("pod %d has %s, want %s", i, got, want)
		}
	}
	if err := s.release("0"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"10.1.0.5", "10.1.0.6", "10.1.0.2"} {
		if got := take(t, s, nodes.UID("pod-"+want)); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if _, _, err := s.take("one too many"); err == nil {
		t.Error("an address was given out although all are in use")
	}
	if got := take(t, s, "1"); got != "10.1.0.3" {
		t.Errorf("pod 1 now has %s, want its own 10.1.0.3", got)
	}
}

func TestAddressesOutliveTheProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := openStore(t, path, "10.1.0.0/24")
	take(t, s, "a")
	take(t, s, "b")
	if err := s.release("b"); err != nil {
		t.Fatal(err)
	}
	s.db.Close()

	s = openStore(t, path, "10.1.0.0/24")
	if got := take(t, s, "a"); got != "10.1.0.2" {
		t.Errorf("pod a has %s after a restart, want 10.1.0.2", got)
	}
	if got := take(t, s, "c"); got != "10.1.0.4" {
		t.Errorf("pod c has %s, want 10.1.0.4: the one after the last given out", got)
	}
	s.db.Close()

	s = openStore(t, path, "10.2.0.0/24")
	if got := take(t, s, "a"); got != "10.2.0.2" {
		t.Errorf("pod a has %s in another range, want 10.2.0.2", got)
	}
}

func TestAddressesAreDistinct(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "db"), "10.1.0.0/24")
	var wg sync.WaitGroup
	got := make([]netip.Addr, 200)
	for i := range got {
		wg.Go(func() {
			addr, stored, err := s.take(nodes.UID(fmt.Sprint(i)))
			if err == nil {
				err = stored()
			}
			if err != nil {
				t.Error(err)
			}
			got[i] = addr
		})
	}
	wg.Wait()
	seen := map[netip.Addr]int{}
	for i, addr := range got {
		if j, ok := seen[addr]; ok {
			t.Errorf("pods %d and %d both have %s", j, i, addr)
		}
		seen[addr] = i
	}
}
