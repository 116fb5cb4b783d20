package wire

import (
	"crypto/sha256"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/wire/pb"
)

// templateRefs numbers the templates of one stream, so that each crosses once.
// It goes by content: a recorded hash names a template but need not be the hash
// of what it holds today, so two templates might bear the same one.
type templateRefs struct {
	last      uint64
	byPointer map[*nodes.Template]uint64
	byContent map[[sha256.Size]byte]uint64
}

func newTemplateRefs() *templateRefs {
	return &templateRefs{byPointer: map[*nodes.Template]uint64{}, byContent: map[[sha256.Size]byte]uint64{}}
}

// ref returns the template's number, 0 for nil, and the message that must be
// sent before the number is used; nil when the receiver has it.
func (r *templateRefs) ref(t *nodes.Template) (uint64, *pb.Template, error) {
	if t == nil {
		return 0, nil, nil
	}
	if ref, known := r.byPointer[t]; known {
		return ref, nil, nil
	}
	spec, err := t.Spec.Marshal()
	if err != nil {
		return 0, nil, fmt.Errorf("template %s: %w", t.Hash, err)
	}
	message := &pb.Template{Hash: t.Hash, Labels: t.Labels, Annotations: t.Annotations, Spec: spec, RuntimeHandler: t.RuntimeHandler}
	encoded, err := proto.MarshalOptions{Deterministic: true}.Marshal(message)
	if err != nil {
		return 0, nil, fmt.Errorf("template %s: %w", t.Hash, err)
	}
	content := sha256.Sum256(encoded)
	if ref, known := r.byContent[content]; known {
		r.byPointer[t] = ref
		return ref, nil, nil
	}
	r.last++
	r.byPointer[t], r.byContent[content] = r.last, r.last
	message.Ref = r.last
	return r.last, message, nil
}

// retain forgets all numbers that used does not hold and returns them, sorted.
func (r *templateRefs) retain(used map[uint64]bool) []uint64 {
	var gone []uint64
	for content, ref := range r.byContent {
		if !used[ref] {
			gone = append(gone, ref)
			delete(r.byContent, content)
		}
	}
	for pointer, ref := range r.byPointer {
		if !used[ref] {
			delete(r.byPointer, pointer)
		}
	}
	slices.Sort(gone)
	return gone
}
