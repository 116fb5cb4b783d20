package agent

import (
	"bytes"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
)

// TestAnAssignmentIsStoredWhole: whenever the machine dies, what its pods are and
// which of them are fenced is of one assignment.
func TestAnAssignmentIsStoredWhole(t *testing.T) {
	db, err := OpenStore(filepath.Join(t.TempDir(), "agent.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.NoSync = true
	s, err := newStore(db, bytes.Repeat([]byte{7}, 32), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	run, end := assign(), assign()
	for i := range 40 {
		p := pod(fmt.Sprint("u", i), corev1.PodSpec{Containers: []corev1.Container{container("a")}})
		run.Pods, run.Fenced = append(run.Pods, p), append(run.Fenced, p.UID)
		end.Pods = append(end.Pods, stopped(p, time.Second))
	}
	s.saveAssignment(nil, end)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 300 {
			s.saveAssignment(end, run)
			s.saveAssignment(run, end)
		}
	}()
	for ended := false; !ended; {
		select {
		case <-done:
			ended = true
		default:
		}
		if !s.flush(t.Context()) {
			t.Fatal("not written")
		}
		got, err := s.load()
		if err != nil {
			t.Fatal(err)
		}
		fenced := map[nodes.UID]bool{}
		for _, uid := range got.assignment.Fenced {
			fenced[uid] = true
		}
		for _, p := range got.assignment.Pods {
			if p.Stop == nil && !fenced[p.UID] {
				t.Fatalf("pod %s is stored as one that may run without a lease", p.UID)
			}
		}
	}
}
