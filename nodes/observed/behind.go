package observed

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
)

// maxBehind is the longest value that is written behind, in bytes: every backend
// takes that much.
const maxBehind = 1 << 20

// behind is what waits to be written: the newest value a place, nil to delete it.
type behind map[Place]any

// places are those that wait, ordered: neighbours share pages of a file.
func (b behind) places() []Place { return slices.SortedFunc(maps.Keys(b), Place.compare) }

// take removes the values of places that still wait.
func (b behind) take(places []Place) behind {
	taken := make(behind, len(places))
	for _, place := range places {
		if value, waits := b[place]; waits {
			taken[place] = value
			delete(b, place)
		}
	}
	return taken
}

// putBack returns what could not be written, below what came since.
func (b behind) putBack(old behind) {
	for place, value := range old {
		if _, newer := b[place]; !newer {
			b[place] = value
		}
	}
}

// changes are the values encoded, in no order. What can't be kept is forgotten,
// and refused says why: others than us said it, and it must not hold up the rest.
func (b behind) changes() (changes []Change, refused []error) {
	changes = make([]Change, 0, len(b))
	for place, value := range b {
		change := Change{Place: place}
		if value != nil {
			encoded, err := json.Marshal(value)
			if err == nil && len(encoded) > maxBehind {
				err = fmt.Errorf("%d bytes are more than %d", len(encoded), maxBehind)
			}
			if err != nil {
				refused = append(refused, fmt.Errorf("%s %s %s: %w", place.Part, place.Of, place.Key, err))
				encoded = nil
			}
			change.Value = encoded
		}
		changes = append(changes, change)
	}
	return changes, refused
}
