//go:build e2e

package chaos

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
)

const boxYAML = `apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %[1]s}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: %[2]dMi}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  strategy: {type: Recreate}
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}, annotations: {change: "%[3]d"}}
    spec:
      terminationGracePeriodSeconds: 1
      volumes: [{name: data, persistentVolumeClaim: {claimName: %[1]s}}]
      initContainers:
      - name: note
        image: %[4]s
        args: [/data/log]
        env: [{name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
        volumeMounts: [{name: data, mountPath: /data}]
      containers:
      - name: main
        image: %[4]s
        env: [{name: FILE, value: /data/log}]
        readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}
        volumeMounts: [{name: data, mountPath: /data}]
`

// confirmed is the word for one box that goes, and for those of revisions that a
// kill kept from coming into force.
const confirmed = "\n\nTally-Confirm: delete 2\nTally-Confirm: delete 4\nTally-Confirm: delete 6"

// box is a claim with a Deployment whose pods each note their name in it.
type box struct {
	name         string
	size, change int
	// there is whether Git has it.
	there bool
	// volume is the one that it has had from the beginning, pods are those that
	// were seen to note themselves.
	volume string
	pods   []string
}

// TestKillsInTheMiddleOfClaims kills parts of Tallyman, and containerd, while
// claims are made, grown, dropped and brought back: no data is lost, none is
// deleted before its time, no claim has two volumes, and in the end nothing is left.
func TestKillsInTheMiddleOfClaims(t *testing.T) {
	random := seed(t)
	c := newCluster(t)
	boxes := []*box{{name: "one", size: 16}, {name: "two", size: 16}, {name: "three", size: 16}}
	for i := range 10 {
		what := c.changeBox(random, boxes[random.IntN(len(boxes))])
		if i == 0 { // something else must stay, or everything would go at once
			c.clone.Write("other.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: other}\n")
		}
		sha := c.clone.Commit(what + confirmed)
		if r := c.clone.Push("-o", "tally.wait=false"); r.Code != 0 {
			t.Fatalf("push of %q: exit code %d: %s", what, r.Code, r.Err)
		}
		delay := time.Duration(random.Int64N(int64(1200 * time.Millisecond)))
		<-time.After(delay) // the moment itself; nothing is waited for
		victim := victims[random.IntN(len(victims))]
		t.Logf("%s; %s later %s killed", what, delay, victim.name)
		c.kill(victim.up, victim.keeper, victim.containerd, func() {})
		if random.IntN(2) == 0 {
			c.WaitConverged(sha, time.Minute)
			c.checkBoxes(boxes)
		}
	}
	c.converged("the last change")
	c.checkBoxes(boxes)
	c.dropBoxes(boxes)
}

// changeBox does the next thing to a box and says what.
func (c *cluster) changeBox(random *rand.Rand, b *box) string {
	c.t.Helper()
	what := "bring back " + b.name
	if b.there {
		switch random.IntN(5) {
		case 0:
			b.size += 16
			what = fmt.Sprintf("grow %s to %dMi", b.name, b.size)
		case 1:
			b.change++
			what = "roll " + b.name
		default:
			return c.dropBox(b)
		}
	}
	b.there = true
	c.clone.Write(b.name+".yaml", fmt.Sprintf(boxYAML, b.name, b.size, b.change, c.images[0]))
	return what
}

// dropBox takes a box out of Git.
func (c *cluster) dropBox(b *box) string {
	c.t.Helper()
	b.there = false
	if err := os.Remove(filepath.Join(c.clone.Dir, b.name+".yaml")); err != nil {
		c.t.Fatal(err)
	}
	return "drop " + b.name
}

// checkBoxes holds that each box has the volume that it always had, with all
// that its pods wrote, and of the size that it should have; one that is not in
// Git keeps its data.
func (c *cluster) checkBoxes(boxes []*box) {
	c.t.Helper()
	for _, b := range boxes {
		c.Eventually(patience, "box "+b.name+" is as it should be", func() error {
			volume, err := c.volumeOf(b)
			if err != nil || !b.there {
				return err
			}
			return c.opened(b, volume)
		})
	}
	if held := c.volumesOnDisk(); len(held) > len(boxes) {
		c.t.Fatalf("the disk has the volumes %v for %d claims", held, len(boxes))
	}
}

// volumeOf finds the one volume of a box, which never changes.
func (c *cluster) volumeOf(b *box) (*nodes.StorageOverview, error) {
	o, err := c.Overview()
	if err != nil {
		return nil, err
	}
	var found *nodes.StorageOverview
	for i := range o.Objects {
		h := &o.Objects[i]
		switch {
		case h.Key.Kind != "PersistentVolume" || h.Storage == nil || h.Storage.Claim.Name != b.name:
		case found != nil:
			c.t.Fatalf("%s has two volumes", b.name)
		case b.volume != "" && b.volume != h.Key.Name:
			c.t.Fatalf("%s had volume %s and has %s", b.name, b.volume, h.Key.Name)
		default:
			found, b.volume = h.Storage, h.Key.Name
		}
	}
	switch {
	case found == nil && b.volume != "":
		c.t.Fatalf("volume %s of %s is gone before its time", b.volume, b.name)
	case b.there && (found == nil || found.Phase != "Bound" || found.Capacity != fmt.Sprintf("%dMi", b.size)):
		return nil, fmt.Errorf("its volume is %+v, want %dMi", found, b.size)
	case !b.there && found != nil && found.Phase != "Released":
		return nil, fmt.Errorf("it is not in Git and its volume is %+v", found)
	}
	return found, nil
}

// opened holds that the one pod of a box reads what all before it wrote.
func (c *cluster) opened(b *box, v *nodes.StorageOverview) error {
	pods := c.pods(b.name)
	if len(pods) != 1 || !pods[0].Pod.Status.Ready {
		return fmt.Errorf("%d pods: %+v", len(pods), pods)
	}
	text, err := get(net.JoinHostPort(pods[0].Pod.IP, "8080"), "/file")
	if err != nil {
		return err
	}
	if now := pods[0].Key.Name; !slices.Contains(b.pods, now) {
		b.pods = append(b.pods, now)
	}
	for _, pod := range b.pods {
		if !strings.Contains(text, "begins "+pod+"\n") {
			c.t.Fatalf("the data of %s on %s has lost what %s wrote: %q", b.name, v.Node, pod, text)
		}
	}
	return nil
}

// volumesOnDisk are the directories with data.
func (c *cluster) volumesOnDisk() []string {
	c.t.Helper()
	held, err := filepath.Glob(filepath.Join(c.DataDir, "persistent", "pvc-*"))
	if err != nil {
		c.t.Fatal(err)
	}
	return held
}

// dropBoxes takes all boxes out of Git with a short time of grace: then nothing
// of them is left.
func (c *cluster) dropBoxes(boxes []*box) {
	c.t.Helper()
	if len(c.volumesOnDisk()) == 0 {
		c.t.Fatal("no volume is on the disk: the test looks at nothing")
	}
	gone := 0
	for _, b := range boxes {
		if b.there {
			c.dropBox(b)
			gone += 2
		}
	}
	c.clone.Write("cluster.yaml", "apiVersion: tallyman.dev/v1alpha1\nkind: Cluster\nmetadata: {name: c}\nspec: {storage: {keep: 1s}}\n")
	c.clone.Apply(fmt.Sprintf("drop all\n\nTally-Confirm: delete %d", gone))
	c.Eventually(patience, "nothing is left of the volumes", func() error {
		o, err := c.Overview()
		if err != nil {
			return err
		}
		for i := range o.Objects {
			if h := &o.Objects[i]; h.Storage != nil {
				return fmt.Errorf("%s: %+v", h.Key, h.Storage)
			}
		}
		if held := c.volumesOnDisk(); len(held) > 0 {
			return fmt.Errorf("on the disk: %v", held)
		}
		return nil
	})
}
