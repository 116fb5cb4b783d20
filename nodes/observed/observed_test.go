package observed

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/observed/observedtest"
)

type directory string

func (d directory) Open(t *testing.T, now func() time.Time) observedtest.Record {
	return openStore(t, string(d), now, slog.New(slog.DiscardHandler))
}

func openStore(t *testing.T, dir string, now func() time.Time, log *slog.Logger) *Store {
	t.Helper()
	s, err := Open(Options{Dir: dir, Now: now, Log: log})
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return s
}

func TestStoreConforms(t *testing.T) {
	observedtest.Run(t, func(t *testing.T) observedtest.Place { return directory(t.TempDir()) })
}

// fill makes a record with enough in it to have inner pages.
func fill(t *testing.T, dir string) (path string) {
	t.Helper()
	s := openStore(t, dir, time.Now, slog.New(slog.DiscardHandler))
	value, err := json.Marshal(strings.Repeat("v", 2000))
	if err != nil {
		t.Fatal(err)
	}
	var decisions []nodes.Decision
	for i := range 200 {
		decisions = append(decisions, nodes.Decision{Kind: "pod", Key: string(rune('a'+i%26)) + strings.Repeat("k", i), Value: value})
	}
	if err := s.Record(t.Context(), decisions); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, fileName)
}

func TestDamagedFileIsSetAside(t *testing.T) {
	for name, damage := range map[string]func(content []byte) []byte{
		"empty of sense":  func([]byte) []byte { return []byte(strings.Repeat("not a database ", 10_000)) },
		"truncated":       func(c []byte) []byte { return c[:len(bytes.TrimRight(c, "\x00"))/2] },
		"cut to a stump":  func(c []byte) []byte { return c[:100] },
		"pages zeroed":    func(c []byte) []byte { clear(c[2*os.Getpagesize():]); return c },
		"pages scribbled": func(c []byte) []byte { copy(c[3*os.Getpagesize():], bytes.Repeat([]byte{0xa5}, len(c))); return c },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := fill(t, dir)
			content, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, damage(content), 0o600); err != nil {
				t.Fatal(err)
			}
			var said bytes.Buffer
			s := openStore(t, dir, time.Now, slog.New(slog.NewTextHandler(&said, nil)))
			defer s.Close()
			if !s.Fresh() {
				t.Error("not fresh")
			}
			aside, err := filepath.Glob(path + ".corrupt-*")
			if err != nil || len(aside) != 1 {
				t.Errorf("set aside: %v %v", aside, err)
			}
			if !strings.Contains(said.String(), "set_aside") {
				t.Errorf("nothing was said: %s", &said)
			}
			if err := s.Record(t.Context(), []nodes.Decision{{Kind: "k", Key: "x", Value: json.RawMessage("1")}}); err != nil {
				t.Errorf("record: %v", err)
			}
		})
	}
}

func TestFileIsPrivate(t *testing.T) {
	path := fill(t, t.TempDir())
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestSecondProcessIsRefused(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, time.Now, slog.New(slog.DiscardHandler))
	defer s.Close()
	if _, err := Open(Options{Dir: dir, Log: slog.New(slog.DiscardHandler)}); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("second open: %v", err)
	}
}

func TestMigrations(t *testing.T) {
	path := fill(t, t.TempDir())
	db, err := openFile(path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	ran := 0
	step := func(tx *bbolt.Tx) error {
		ran++
		return tx.Bucket(bucketMeta).Put([]byte("extra"), []byte("1"))
	}
	for range 2 {
		if err := migrate(db, append(migrations(), step)); err != nil {
			t.Fatal(err)
		}
	}
	if ran != 1 {
		t.Errorf("the new step ran %d times", ran)
	}
	if err := migrate(db, migrations()); !errors.Is(err, ErrNewer) {
		t.Errorf("an older program: %v", err)
	}
	broken := func(*bbolt.Tx) error { return errors.New("no") }
	if err := migrate(db, append(migrations(), step, step, broken)); err == nil {
		t.Error("a broken step passed")
	}
	if err := migrate(db, append(migrations(), step)); err != nil {
		t.Errorf("a broken step left a trace: %v", err)
	}
}

func TestRunWritesBehind(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, time.Now, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	s.AppendHistory(nodes.HistoryEntry{Outcome: nodes.OutcomePending})
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := s.backend.(*file).db.View(func(tx *bbolt.Tx) error {
		if n := tx.Bucket(bucketHistory).Stats().KeyN; n != 1 {
			t.Errorf("%d entries in the file", n)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// BenchmarkRecord is the price of one step's decisions on this disk.
func BenchmarkRecord(b *testing.B) {
	s, err := Open(Options{Dir: b.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	value := json.RawMessage(`{"uid":"` + strings.Repeat("x", 400) + `"}`)
	for i := 0; b.Loop(); i++ {
		var decisions []nodes.Decision
		for j := range 10 {
			decisions = append(decisions, nodes.Decision{Kind: "pod", Key: string(rune('a' + (i*10+j)%1000)), Value: value})
		}
		if err := s.Record(b.Context(), decisions); err != nil {
			b.Fatal(err)
		}
	}
}

// counted tells how many values each commit had.
type counted struct {
	Backend
	commits []int
}

func (c *counted) Write(ctx context.Context, changes []Change) error {
	c.commits = append(c.commits, len(changes))
	return c.Backend.Write(ctx, changes)
}

// TestMuchIsWrittenBehindInPieces: and decisions wait for none of it.
func TestMuchIsWrittenBehindInPieces(t *testing.T) {
	f, err := openBackend(filepath.Join(t.TempDir(), fileName))
	if err != nil {
		t.Fatal(err)
	}
	backend := &counted{Backend: f}
	s, err := New(t.Context(), backend, Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	report := nodes.Report{Node: "n1", Complete: true}
	for i := range piece + 2 {
		report.Statuses = append(report.Statuses, nodes.PodStatus{UID: nodes.UID(fmt.Sprint(i))})
	}
	s.SaveReport(report)
	decision := []nodes.Decision{{Kind: "k", Key: "x", Value: json.RawMessage("1")}}
	if err := s.Record(t.Context(), decision); err != nil {
		t.Fatal(err)
	}
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	s.SaveReport(nodes.Report{Node: "n1", Gone: []nodes.UID{"0"}})
	if err := s.Record(t.Context(), decision); err != nil {
		t.Fatal(err)
	}
	if want := []int{1, piece, 2, 2}; !slices.Equal(backend.commits, want) {
		t.Errorf("commits of %v values, want %v", backend.commits, want)
	}
}

// TestARecordThatWasReplacedIsKeptApart: another one begins in its place.
func TestARecordThatWasReplacedIsKeptApart(t *testing.T) {
	dir := t.TempDir()
	content, err := os.ReadFile(fill(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	aside, err := SetAside(dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if kept, err := os.ReadFile(aside); err != nil || !bytes.Equal(kept, content) {
		t.Errorf("%s is not what was there: %v", aside, err)
	}
	s := openStore(t, dir, time.Now, slog.New(slog.DiscardHandler))
	defer s.Close()
	if !s.Fresh() {
		t.Error("the old record is used")
	}
	if aside, err := SetAside(t.TempDir(), time.Now()); aside != "" || err != nil {
		t.Errorf("where there was none: %q, %v", aside, err)
	}
}
