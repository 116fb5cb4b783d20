package sim

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tallyman-dev/tallyman/nodes/observed"
	"github.com/tallyman-dev/tallyman/nodes/observed/observedtest"
)

// sharedPlace is a shared store with one server.
type sharedPlace struct{ host *host }

// newSharedPlace has no record yet.
func newSharedPlace() sharedPlace {
	w := &world{store: newShared(), began: time.Now()}
	return sharedPlace{newHost(w, 0)}
}

// elect has the server lead anew, after whoever did.
func (p sharedPlace) elect(t *testing.T) *term {
	t.Helper()
	p.host.life = &life{}
	if lead := p.host.world.store.leads(); lead != 0 {
		p.host.world.store.resign(lead)
	}
	elected, err := p.host.campaign(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	elected.extend(p.host.clock.now() + p.host.world.store.lasts - termOf)
	return elected
}

// Open implements observedtest.Place.
func (p sharedPlace) Open(t *testing.T, now func() time.Time) observedtest.Record {
	s, err := observed.New(t.Context(), p.elect(t), observed.Options{Log: silent, Now: now, Apart: pieces})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestSharedStoreIsARecord holds the fake to what etcd's has to do.
func TestSharedStoreIsARecord(t *testing.T) {
	observedtest.Run(t, func(*testing.T) observedtest.Place {
		p := newSharedPlace()
		p.host.world.store.lasts = time.Hour // the suite runs in real time
		return p
	})
}

// TestADeposedServerWritesNothing is what the store is for.
func TestADeposedServerWritesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newSharedPlace()
		old := p.elect(t)
		change := []observed.Change{{Place: observed.Place{Part: observed.PartDecisions, Of: "pod", Key: "a"}, Value: []byte("1")}}
		if err := old.Write(t.Context(), change); err != nil {
			t.Fatalf("the leader may not write: %v", err)
		}
		time.Sleep(termOf)
		newer := p.elect(t)
		if newer.revision <= old.revision {
			t.Errorf("term %d follows %d", newer.revision, old.revision)
		}
		change[0].Value = []byte("2")
		if err := old.Write(t.Context(), change); !errors.Is(err, errDeposed) || old.leads() {
			t.Errorf("a deposed server: %v, leads %v", err, old.leads())
		}
		switch got, err := newer.Decisions(t.Context()); {
		case err != nil:
			t.Error(err)
		case len(got) != 1 || string(got[0].Value) != "1":
			t.Errorf("decisions %v", got)
		}
	})
}
