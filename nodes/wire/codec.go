package wire

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	protobuf "google.golang.org/protobuf/proto"
)

// exact encodes each message into a buffer of its own size. gRPC's own way takes
// buffers from pools of few sizes: whatever is above 32 KiB takes 1 MiB, and with
// thousands of streams at once the pools keep hundreds of them.
type exact struct{ encoding.CodecV2 }

func newExact() exact { return exact{encoding.GetCodecV2(proto.Name)} }

// Marshal implements encoding.CodecV2.
func (exact) Marshal(v any) (mem.BufferSlice, error) {
	message, ok := v.(protobuf.Message)
	if !ok {
		return nil, fmt.Errorf("encode: a %T is no message", v)
	}
	encoded, err := protobuf.Marshal(message)
	if err != nil {
		return nil, err
	}
	return mem.BufferSlice{mem.SliceBuffer(encoded)}, nil
}
