package wire

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/tallyman-dev/tallyman/desired"
)

// shape says where a message of Kubernetes' has quantities. They compute their
// powers of ten as they are decoded, so they are looked at before that. Immutable.
type shape struct {
	// text tells that this is the text of a quantity.
	text bool
	// fields are those that are, or hold, quantities.
	fields map[protowire.Number]*shape
}

var (
	podShape    = sync.OnceValue(func() *shape { return shapeOf(reflect.TypeFor[corev1.PodSpec]()) })
	volumeShape = sync.OnceValue(func() *shape { return shapeOf(reflect.TypeFor[corev1.PersistentVolumeSpec]()) })
)

// shapeOf reads the tags of a Go type; nil when it has no quantities. The type
// must not contain itself.
func shapeOf(t reflect.Type) *shape {
	switch {
	case t == reflect.TypeFor[resource.Quantity]():
		return &shape{fields: map[protowire.Number]*shape{1: {text: true}}}
	case t.Kind() == reflect.Pointer, t.Kind() == reflect.Slice:
		return shapeOf(t.Elem())
	case t.Kind() == reflect.Map:
		return parent(map[protowire.Number]*shape{2: shapeOf(t.Elem())})
	case t.Kind() != reflect.Struct:
		return nil
	}
	fields := map[protowire.Number]*shape{}
	for i := range t.NumField() {
		_, rest, _ := strings.Cut(t.Field(i).Tag.Get("protobuf"), ",")
		number, _, _ := strings.Cut(rest, ",")
		if n, err := strconv.ParseInt(number, 10, 32); err == nil {
			fields[protowire.Number(n)] = shapeOf(t.Field(i).Type)
		}
	}
	return parent(fields)
}

// parent leaves out the fields without quantities.
func parent(fields map[protowire.Number]*shape) *shape {
	for n, s := range fields {
		if s == nil {
			delete(fields, n)
		}
	}
	if len(fields) == 0 {
		return nil
	}
	return &shape{fields: fields}
}

// check refuses a message with quantities that take long to decode.
func (s *shape) check(message []byte) error {
	if s.text {
		return desired.CheckQuantity(string(message))
	}
	for len(message) > 0 {
		number, kind, size := protowire.ConsumeTag(message)
		if size < 0 {
			return protowire.ParseError(size)
		}
		message = message[size:]
		if size = protowire.ConsumeFieldValue(number, kind, message); size < 0 {
			return protowire.ParseError(size)
		}
		if child := s.fields[number]; child != nil && kind == protowire.BytesType {
			value, _ := protowire.ConsumeBytes(message)
			if err := child.check(value); err != nil {
				return fmt.Errorf("field %d: %w", number, err)
			}
		}
		message = message[size:]
	}
	return nil
}
