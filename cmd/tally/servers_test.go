package main

import (
	"net"
	"slices"
	"testing"
)

func TestServersAreDialledInTurn(t *testing.T) {
	s := &servers{addresses: []string{"a", "b", "c"}}
	for _, step := range []struct {
		leader string
		want   []string
	}{
		{"", []string{"a", "b", "c"}},
		{"c", []string{"c", "b", "c", "a"}},
		{"", []string{"c", "a", "b"}},
		{"x", []string{"x", "a", "b", "c"}},
	} {
		s.elsewhere(step.leader)
		if got := s.order(); !slices.Equal(got, step.want) {
			t.Errorf("leader %q: %v, want %v", step.leader, got, step.want)
		}
	}
}

// TestADeadServerHoldsUpNobody dials one that refuses and one that never
// answers before the one that does.
func TestADeadServerHoldsUpNobody(t *testing.T) {
	alive, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer alive.Close()
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	s := &servers{addresses: []string{gone.Addr().String(), "192.0.2.1:9", alive.Addr().String()}}
	conn, err := s.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := conn.RemoteAddr().String(); got != alive.Addr().String() {
		t.Errorf("connected to %s", got)
	}
	s = &servers{addresses: []string{gone.Addr().String()}}
	if _, err := s.dial(t.Context()); err == nil {
		t.Error("connected to nobody")
	}
}
