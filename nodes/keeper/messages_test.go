package keeper

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestMessagesAreBounded: they are on tmpfs, which the fences need.
func TestMessagesAreBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keeper.log")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	log := slog.New(slog.NewTextHandler(Messages(f), nil))
	for i := range 3 * maxMessages / 50 { // each of more than 50 bytes
		log.Info("the keeper has something to say", "number", i)
		if info, err := f.Stat(); err != nil || info.Size() > maxMessages {
			t.Fatalf("after %d messages: %v, %v", i, info, err)
		}
	}
	log.Info("the last word")
	text, err := os.ReadFile(path)
	if lines := strings.Split(string(text), "\n"); err != nil || len(lines) < 2 || !strings.Contains(lines[len(lines)-2], "the last word") || !strings.HasPrefix(lines[0], "time=") {
		t.Errorf("left: %.100q… of %d bytes, %v", text, len(text), err)
	}
}

func TestMessagesToAPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.WriteString(Messages(w), "heard"); err != nil {
		t.Error(err)
	}
	w.Close()
	if text, err := io.ReadAll(r); string(text) != "heard" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
}

// TestAFullDiskIsNotSaidForEveryLine.
func TestAFullDiskIsNotSaidForEveryLine(t *testing.T) {
	pipe, err := openPipe(filepath.Join(t.TempDir(), "pipe"))
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	raw, err := pipe.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	var said bytes.Buffer
	l := newLogs(t.TempDir(), slog.New(slog.NewTextHandler(&said, nil)))
	s := &stream{name: "stdout", id: "web", pipe: pipe, file: &file{f: full, maxSize: 1 << 20}, scratch: l.scratch, log: l.log}
	const lines = 1000
	for range lines {
		if _, err := pipe.WriteString("a line\n"); err != nil {
			t.Fatal(err)
		}
		if left := s.turn(raw.Control, false, 'P'); left > 0 {
			t.Fatalf("%d bytes stay in the pipe", left)
		}
	}
	if n := strings.Count(said.String(), "log lines dropped"); n == 0 || n > lines/100 {
		t.Errorf("said %d times:\n%s", n, &said)
	}
	s.drops.next = 0 // a minute later
	said.Reset()
	s.drop(len("a line\n"), errors.New("no space left"))
	if !strings.Contains(said.String(), " times=") || strings.Contains(said.String(), " times=1 ") || s.dropped != 0 {
		t.Errorf("nothing tells how much was dropped: %s", &said)
	}
}

// TestAKillThatFailsIsNotSaidEveryTime, and is tried as often as before.
func TestAKillThatFailsIsNotSaidEveryTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newFenced(t, t.TempDir())
		var said bytes.Buffer
		w.log = slog.New(slog.NewTextHandler(&said, nil))
		tried := 0
		w.kill = func([]string) (int, error) {
			tried++
			return 0, errors.New("not permitted")
		}
		w.begin()
		w.fence(time.Second, "a", "b")
		time.Sleep(time.Second + 5*time.Minute + 30*time.Second)
		synctest.Wait()
		if n := strings.Count(said.String(), "kill fenced pod"); n != 2*6 {
			t.Errorf("said %d times in five minutes and a half:\n%s", n, &said)
		}
		if tried < 2*5*int(time.Minute/killAgain) {
			t.Errorf("tried %d times", tried)
		}
		w.stopped()
	})
}
