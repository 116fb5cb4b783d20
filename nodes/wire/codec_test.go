package wire

import (
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/tallyman-dev/tallyman/nodes/wire/pb"
)

// TestMessagesTakeWhatTheyNeed: a buffer above 32 KiB is not one of 1 MiB.
func TestMessagesTakeWhatTheyNeed(t *testing.T) {
	sent := &pb.Config{Version: "1", Data: map[string][]byte{"file": make([]byte, 40<<10)}}
	encoded, err := newExact().Marshal(sent)
	if err != nil {
		t.Fatal(err)
	}
	if got := cap(encoded[0].ReadOnlyData()); len(encoded) != 1 || got > 48<<10 {
		t.Errorf("%d bytes are encoded into %d buffers, the first of %d bytes", proto.Size(sent), len(encoded), got)
	}
	received := &pb.Config{}
	if err := newExact().Unmarshal(encoded, received); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(sent, received) {
		t.Errorf("received %v", received)
	}
	if _, err := newExact().Marshal(mem.BufferSlice{}); err == nil {
		t.Error("what is no message was encoded")
	}
}
