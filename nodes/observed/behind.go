package observed

import (
	"encoding/json"
	"fmt"
)

// behind is what waits to be written: the newest value a place, nil to delete it.
type behind map[Place]any

// take removes at most limit values; 0 is no limit.
func (b *behind) take(limit int) behind {
	if limit <= 0 || len(*b) <= limit {
		taken := *b
		*b = behind{}
		return taken
	}
	taken := make(behind, limit)
	for place, value := range *b {
		if len(taken) == limit {
			break
		}
		taken[place] = value
		delete(*b, place)
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

// changes are the values encoded, in no order.
func (b behind) changes() ([]Change, error) {
	changes := make([]Change, 0, len(b))
	for place, value := range b {
		change := Change{Place: place}
		if value != nil {
			encoded, err := json.Marshal(value)
			if err != nil {
				return nil, fmt.Errorf("encode %s %s %s: %w", place.Part, place.Of, place.Key, err)
			}
			change.Value = encoded
		}
		changes = append(changes, change)
	}
	return changes, nil
}
