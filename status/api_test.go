package status

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// TestOverviewIsWrittenWhole compares with what the encoder makes in one piece.
func TestOverviewIsWrittenWhole(t *testing.T) {
	for _, count := range []int{0, 1, 3} {
		o := &nodes.Overview{Serial: 7, Version: "test", Nodes: []nodes.NodeOverview{{}}}
		for i := range count {
			o.Objects = append(o.Objects, nodes.ObjectHealth{Key: desired.Key{Kind: "Pod", Name: string(rune('a' + i))}})
		}
		var stream bytes.Buffer
		if err := writeOverview(&stream, o); err != nil {
			t.Fatal(err)
		}
		whole, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		var got, want map[string]any
		if err := json.Unmarshal(stream.Bytes(), &got); err != nil {
			t.Fatalf("%d objects: %v: %s", count, err, &stream)
		}
		if err := json.Unmarshal(whole, &want); err != nil {
			t.Fatal(err)
		}
		if count == 0 {
			want["objects"] = []any{}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%d objects: %s", count, diff)
		}
	}
}
