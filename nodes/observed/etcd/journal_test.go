package etcd

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/tallyman-dev/tallyman/nodes/observed"
)

// TestPartsFitIntoARequest, however small the changes are that they are made of.
func TestPartsFitIntoARequest(t *testing.T) {
	for name, values := range map[string][]string{
		"deletions": make([]string, 50_000), "small": strings.Split(strings.Repeat(" 1", 50_000)[1:], " "),
		"large": {`"` + strings.Repeat("x", maxBytes) + `"`, "1", `"` + strings.Repeat("x", maxBytes-100) + `"`, "2"},
	} {
		var changes []observed.Change
		for i, value := range values {
			change := observed.Change{Place: observed.Place{Part: observed.PartDecisions, Of: "pod", Key: fmt.Sprint(i)}}
			if value != "" {
				change.Value = json.RawMessage(value)
			}
			changes = append(changes, change)
		}
		parts, err := encodeParts(changes)
		if err != nil {
			t.Fatal(err)
		}
		next := 0
		for _, part := range parts {
			var lines []line
			if err := json.Unmarshal(part, &lines); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if len(part) > maxBytes && len(lines) > 1 {
				t.Errorf("%s: a part of %d bytes", name, len(part))
			}
			for _, l := range lines {
				if l.Key != changes[next].Key || string(l.Value) != string(changes[next].Value) {
					t.Fatalf("%s: change %d became %+v", name, next, l)
				}
				next++
			}
		}
		if next != len(changes) {
			t.Errorf("%s: %d changes of %d", name, next, len(changes))
		}
	}
}
