package device

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"

	"github.com/tallyman-dev/tallyman/nodes"
)

// holdings are who has what: by pod, container and resource.
type holdings map[nodes.UID]map[string]map[string]holding

// holding is what one container has of one resource.
type holding struct {
	IDs   []string `json:"ids"`
	Grant Grant    `json:"grant"`

	// asked: the source was asked for the grant and has not answered.
	asked bool
}

// readHoldings reads the record. A damaged one is an error: going on without
// would give a device to two containers.
func readHoldings(path string) (holdings, error) {
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return holdings{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read who has which device: %w", err)
	}
	h := holdings{}
	if err := json.Unmarshal(content, &h); err != nil {
		return nil, fmt.Errorf("%s is damaged (%w): stop the pods that use devices and remove it", path, err)
	}
	return h, nil
}

// granted are the holdings that are more than a question.
func (h holdings) granted() holdings {
	kept := holdings{}
	for uid, containers := range h {
		for container, resources := range containers {
			for resource, have := range resources {
				if !have.asked {
					kept.set(uid, container, resource, have)
				}
			}
		}
	}
	return kept
}

// write replaces the record at once.
func (h holdings) write(path string) error {
	content, err := json.Marshal(h.granted())
	if err != nil {
		return err
	}
	temporary := path + ".new"
	f, err := os.OpenFile(temporary, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write who has which device: %w", err)
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		return fmt.Errorf("write who has which device: %w", err)
	}
	return nil
}

func (h holdings) get(uid nodes.UID, container, resource string) (holding, bool) {
	have, found := h[uid][container][resource]
	return have, found
}

func (h holdings) set(uid nodes.UID, container, resource string, have holding) {
	if h[uid] == nil {
		h[uid] = map[string]map[string]holding{}
	}
	if h[uid][container] == nil {
		h[uid][container] = map[string]holding{}
	}
	h[uid][container][resource] = have
}

func (h holdings) drop(uid nodes.UID, container, resource string) {
	delete(h[uid][container], resource)
}

// free are the IDs of working devices that a claim may have, those that the pod
// has already first, sorted otherwise.
func (h holdings) free(c *Claim, resource string, devices map[string]bool) []string {
	taken, shared := map[string]bool{}, map[string]bool{}
	for uid, containers := range h {
		for name, resources := range containers {
			for _, id := range resources[resource].IDs {
				switch {
				case uid == c.Pod && name == c.Container:
				case uid == c.Pod && slices.Contains(c.Shares, name):
					shared[id] = true
				default:
					taken[id] = true
				}
			}
		}
	}
	var own, rest []string
	for _, id := range slices.Sorted(maps.Keys(devices)) {
		switch {
		case !devices[id] || taken[id]:
		case shared[id]:
			own = append(own, id)
		default:
			rest = append(rest, id)
		}
	}
	return append(own, rest...)
}
