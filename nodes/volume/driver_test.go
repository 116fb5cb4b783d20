package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/csi"
	"github.com/tallyman-dev/tallyman/nodes/csi/fake"
)

// driven is a node with a driver that mounts nothing.
type driven struct {
	t       *testing.T
	dir     string
	driver  *fake.Driver
	drivers *csi.Drivers
	configs map[desired.Key]*nodes.Config

	manager    *Manager
	persistent *Persistent
}

func newDriven(t *testing.T, lacks ...spec.ControllerServiceCapability_RPC_Type) *driven {
	dir, err := os.MkdirTemp("", "csi") // short: a socket's path has 107 bytes at most
	must(t, err)
	w := &driven{t: t, dir: dir, driver: &fake.Driver{}, configs: map[desired.Key]*nodes.Config{}}
	w.driver.Lack(lacks...)
	kubelet := filepath.Join(dir, "kubelet")
	ctx, cancel := context.WithCancel(context.Background())
	changed, served, followed := make(chan struct{}, 16), make(chan error, 1), make(chan error, 1)
	w.drivers, err = csi.New(csi.Options{Dir: kubelet, DataDir: dir, Changed: func() { changed <- struct{}{} }, Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	go func() { served <- w.driver.Serve(ctx, kubelet) }()
	go func() { followed <- w.drivers.Follow(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-followed
		<-served
		must(t, os.RemoveAll(dir))
	})
	select {
	case <-changed:
	case <-time.After(time.Minute):
		t.Fatal("the driver does not register")
	}
	w.restart()
	return w
}

// restart is the next run of the agent: all it knows is on the disk.
func (w *driven) restart() {
	w.t.Helper()
	volumes, err := csi.NewVolumes(csi.VolumesOptions{Drivers: w.drivers, DataDir: w.dir, Config: func(k desired.Key) *nodes.Config { return w.configs[k] }})
	must(w.t, err)
	w.manager, err = New(Options{DataDir: w.dir, RunDir: filepath.Join(w.dir, "run"), Drivers: volumes, Log: slog.New(slog.DiscardHandler)})
	must(w.t, err)
	w.persistent, err = NewPersistent(PersistentOptions{DataDir: w.dir, RunDir: filepath.Join(w.dir, "run"), Node: "n1", Drivers: volumes, Log: slog.New(slog.DiscardHandler)})
	must(w.t, err)
}

func (w *driven) spec(s storagev1.CSIDriverSpec) {
	text, err := json.Marshal(s)
	must(w.t, err)
	w.configs[nodes.DriverKey(fake.Name)] = &nodes.Config{Data: map[string][]byte{nodes.DriverSpec: text}}
}

func (w *driven) shows(want string) {
	w.t.Helper()
	if got := w.driver.String(); got != want {
		w.t.Fatalf("the driver has\n%swant\n%s", got, want)
	}
}

func madeByDriver(size string) *nodes.Volume {
	return &nodes.Volume{
		Name: "pvc-1", UID: "u", Claim: desired.Key{Kind: "PersistentVolumeClaim", Namespace: "default", Name: "data"},
		Provisioner: fake.Name, Class: "fast", Parameters: map[string]string{"color": "blue"},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:    corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)},
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		},
	}
}

func drivenPod(uid nodes.UID) *nodes.Pod {
	return &nodes.Pod{UID: uid, Namespace: "default", Name: string(uid), Template: &nodes.Template{}}
}

// life leads a volume through its life, from where it is, as the agent does.
func (w *driven) life(ctx context.Context, stage *int) error {
	small, large := madeByDriver("1Mi"), madeByDriver("2Mi")
	small.Made, large.Made = *stage > 0, *stage > 0
	steps := []func() error{
		func() error { _, err := w.persistent.Ensure(ctx, small); return err },
		func() error { _, err := w.persistent.Stage(ctx, small, csi.Wish{Pod: drivenPod("one")}); return err },
		func() error { _, err := w.persistent.Stage(ctx, small, csi.Wish{Pod: drivenPod("two")}); return err },
		func() error { _, err := w.persistent.Ensure(ctx, large); return err },
		func() error { return w.manager.drivers.Unpublish(ctx, "one") },
		func() error { return w.persistent.Unstage(ctx, large, func() bool { return true }) },
		func() error { return w.persistent.Delete(ctx, large) },
	}
	return carryOut(stage, steps)
}

func carryOut(stage *int, steps []func() error) error {
	for ; *stage < len(steps); *stage++ {
		if err := steps[*stage](); err != nil {
			return fmt.Errorf("step %d: %w", *stage, err)
		}
	}
	return nil
}

// TestVolumeThatNeverWasCanGo deletes what its driver refused to make.
func TestVolumeThatNeverWasCanGo(t *testing.T) {
	w := newDriven(t)
	v := madeByDriver("1Mi")
	v.Parameters = map[string]string{"color": "none"}
	if _, err := w.persistent.Ensure(t.Context(), v); !csi.Refused(err) {
		t.Fatalf("made a volume without a color: %v", err)
	}
	w.driver.CutAt(1, false)
	if err := w.persistent.Delete(t.Context(), v); err == nil {
		t.Error("it is said to be gone while nobody knows")
	}
	must(t, w.persistent.Delete(t.Context(), v))
	if _, err := os.Stat(w.persistent.home(v)); err == nil {
		t.Error("its record is left")
	}
}

// Copies of what madeByDriver is.
func snapshotByDriver() *nodes.Volume {
	v := copyByDriver("snapcontent-1", nodes.Origin{Name: "pvc-1", UID: "u", Volume: "handle-of-pvc-1"})
	v.Snapshot = true
	return v
}

func copyByDriver(name string, from nodes.Origin) *nodes.Volume {
	v := madeByDriver("1Mi")
	v.Name, v.From = name, &from
	return v
}

func restoredByDriver() *nodes.Volume {
	return copyByDriver("pvc-2", nodes.Origin{Name: "snapcontent-1", UID: "u", Snapshot: "snapshot-snapcontent-1"})
}

func cloneByDriver() *nodes.Volume {
	return copyByDriver("pvc-3", nodes.Origin{Name: "pvc-1", UID: "u", Volume: "handle-of-pvc-1"})
}

// copies takes a snapshot, which is ready when it is asked for the third time,
// restores it, clones the volume, and deletes all.
func (w *driven) copies(ctx context.Context, stage *int) error {
	ensure := func(v *nodes.Volume) func() error {
		return func() error {
			for {
				if _, err := w.persistent.Ensure(ctx, v); !errors.Is(err, ErrUnready) {
					return err
				}
			}
		}
	}
	remove := func(v *nodes.Volume) func() error { return func() error { return w.persistent.Delete(ctx, v) } }
	if *stage == 0 {
		w.driver.Busy(2)
	}
	return carryOut(stage, []func() error{
		ensure(madeByDriver("1Mi")), ensure(snapshotByDriver()), ensure(restoredByDriver()), ensure(cloneByDriver()),
		func() error {
			w.shows("handle-of-pvc-1: size 1048576, on the node 1048576, attached \"\", staged false, published 0\n" +
				"handle-of-pvc-2: size 1048576, on the node 1048576, attached \"\", staged false, published 0, from snapshot-snapcontent-1\n" +
				"handle-of-pvc-3: size 1048576, on the node 1048576, attached \"\", staged false, published 0, from handle-of-pvc-1\n" +
				"snapshot-snapcontent-1: of handle-of-pvc-1\n")
			return nil
		},
		remove(cloneByDriver()), remove(restoredByDriver()), remove(snapshotByDriver()), remove(madeByDriver("1Mi")),
	})
}

// TestDriverCutOffAnywhere kills the agent at each call of a volume's life,
// before and after the driver did what it was asked for.
func TestDriverCutOffAnywhere(t *testing.T) {
	t.Run("a volume", func(t *testing.T) { cutOffAnywhere(t, (*driven).life, 12) })
	t.Run("snapshots and copies", func(t *testing.T) { cutOffAnywhere(t, (*driven).copies, 10) })
}

func cutOffAnywhere(t *testing.T, life func(*driven, context.Context, *int) error, least int) {
	w := newDriven(t)
	stage := 0
	must(t, life(w, t.Context(), &stage))
	w.shows("")
	w.driver.CutAt(-1, false)
	stage = 0
	must(t, life(w, t.Context(), &stage))
	calls := w.driver.Calls()
	if calls < least {
		t.Fatalf("a life has %d calls", calls)
	}
	for n := 1; n <= calls; n++ {
		for _, effect := range []bool{false, true} {
			w.driver.CutAt(n, effect)
			stage := 0
			if err := life(w, t.Context(), &stage); err == nil {
				t.Fatalf("call %d was cut off, and nobody says so", n)
			}
			w.restart()
			if err := life(w, t.Context(), &stage); err != nil {
				t.Fatalf("call %d was cut off (effect %t): %v", n, effect, err)
			}
			w.shows("")
			if left, _ := filepath.Glob(filepath.Join(w.dir, "csi", "*", "*")); len(left) > 0 {
				t.Fatalf("call %d was cut off (effect %t), left are %v", n, effect, left)
			}
		}
	}
}

// TestDriverDeletesWhatNobodyKnows ends a volume of which nobody knows whether
// it was made.
func TestDriverDeletesWhatNobodyKnows(t *testing.T) {
	for _, effect := range []bool{false, true} {
		w := newDriven(t)
		w.driver.CutAt(1, effect)
		if _, err := w.persistent.Ensure(t.Context(), madeByDriver("1Mi")); err == nil {
			t.Fatal("the call was cut off, and nobody says so")
		}
		w.restart()
		must(t, w.persistent.Delete(t.Context(), madeByDriver("8Mi")))
		w.shows("")
		for _, v := range []*nodes.Volume{snapshotByDriver(), cloneByDriver()} {
			_, err := w.persistent.Ensure(t.Context(), madeByDriver("1Mi"))
			must(t, err)
			w.driver.CutAt(1, effect)
			if _, err := w.persistent.Ensure(t.Context(), v); err == nil {
				t.Fatal("the call was cut off, and nobody says so")
			}
			w.restart()
			must(t, w.persistent.Delete(t.Context(), v))
			must(t, w.persistent.Delete(t.Context(), madeByDriver("1Mi")))
			w.shows("")
		}
	}
}

// TestDriverSnapshotIsAskedForUntilReady asks no more afterwards: the volume that
// it is of may be gone.
func TestDriverSnapshotIsAskedForUntilReady(t *testing.T) {
	w := newDriven(t)
	_, err := w.persistent.Ensure(t.Context(), madeByDriver("1Mi"))
	must(t, err)
	w.driver.Busy(1)
	status, err := w.persistent.Ensure(t.Context(), snapshotByDriver())
	if !errors.Is(err, ErrUnready) || status.Phase != nodes.VolumePending || status.Reason != ReasonUnready || status.Source == nil {
		t.Fatalf("before it is ready its status is %+v, %v", status, err)
	}
	w.restart()
	if status, err = w.persistent.Ensure(t.Context(), snapshotByDriver()); err != nil || status.Phase != nodes.VolumeReady || status.Source.VolumeHandle != "snapshot-snapcontent-1" {
		t.Fatalf("then its status is %+v, %v", status, err)
	}
	must(t, w.persistent.Delete(t.Context(), madeByDriver("1Mi")))
	w.restart()
	w.driver.CutAt(-1, false)
	known := snapshotByDriver()
	known.Made = true
	if status, err = w.persistent.Ensure(t.Context(), known); err != nil || status.Phase != nodes.VolumeReady || w.driver.Calls() != 0 {
		t.Errorf("without its volume its status is %+v, %v, after %d calls", status, err, w.driver.Calls())
	}
	must(t, os.RemoveAll(w.persistent.home(known)))
	if _, err = w.persistent.Ensure(t.Context(), known); err == nil {
		t.Error("a snapshot whose handle nobody knows is ready")
	}
	known.Spec.CSI = status.Source
	if status, err = w.persistent.Ensure(t.Context(), known); err != nil || status.Phase != nodes.VolumeReady {
		t.Errorf("with the handle that the server knows its status is %+v, %v", status, err)
	}
	must(t, w.persistent.Delete(t.Context(), known))
	w.shows("")
}

func TestDriverWithoutCopies(t *testing.T) {
	for name, c := range map[string]struct {
		lacks spec.ControllerServiceCapability_RPC_Type
		v     *nodes.Volume
		want  string
	}{
		"snapshot": {spec.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT, snapshotByDriver(), "takes no snapshots"},
		"restore":  {spec.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT, restoredByDriver(), "has no snapshots"},
		"clone":    {spec.ControllerServiceCapability_RPC_CLONE_VOLUME, cloneByDriver(), "cannot clone"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newDriven(t, c.lacks)
			if _, err := w.persistent.Ensure(t.Context(), c.v); err == nil || !strings.Contains(err.Error(), "driver "+fake.Name+" "+c.want) {
				t.Errorf("it is refused with %v", err)
			}
			must(t, w.persistent.Delete(t.Context(), c.v))
			if held, err := w.persistent.Held(t.Context()); err != nil || len(held) != 0 {
				t.Errorf("left is %v, %v", held, err)
			}
		})
	}
}

func TestDriverGrowsWhatAPodHas(t *testing.T) {
	w := newDriven(t)
	_, err := w.persistent.Ensure(t.Context(), madeByDriver("1Mi"))
	must(t, err)
	status, err := w.persistent.Ensure(t.Context(), madeByDriver("2Mi"))
	must(t, err)
	if status.Reason != ReasonNodeResize || status.Capacity != 1<<20 {
		t.Errorf("without a pod the status is %+v", status)
	}
	_, err = w.persistent.Stage(t.Context(), madeByDriver("2Mi"), csi.Wish{Pod: drivenPod("one")})
	must(t, err)
	if status, err = w.persistent.Ensure(t.Context(), madeByDriver("2Mi")); err != nil || status.Reason != "" || status.Capacity != 2<<20 {
		t.Errorf("with a pod the status is %+v, %v", status, err)
	}
	w.shows("handle-of-pvc-1: size 2097152, on the node 2097152, attached \"here\", staged true, published 1\n")
	if status.Source == nil || status.Source.VolumeHandle != "handle-of-pvc-1" || status.Source.VolumeAttributes["color"] != "blue" {
		t.Errorf("its source is %+v", status.Source)
	}
}

func TestDriverIsTold(t *testing.T) {
	w := newDriven(t)
	yes := true
	w.spec(storagev1.CSIDriverSpec{
		PodInfoOnMount: &yes, VolumeLifecycleModes: []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecycleEphemeral},
		TokenRequests: []storagev1.TokenRequest{{Audience: "vault"}},
	})
	w.configs[desired.Key{Kind: "Secret", Namespace: "default", Name: "key"}] = &nodes.Config{Data: map[string][]byte{"k": []byte("v")}}
	pod := drivenPod("one")
	pod.Template.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{
		Driver: fake.Name, VolumeAttributes: map[string]string{"a": "b"}, NodePublishSecretRef: &corev1.LocalObjectReference{Name: "key"},
	}}}}
	src := Source{DriverToken: func(s *corev1.ServiceAccountTokenProjection) (csi.Token, error) {
		return csi.Token{Value: "token for " + s.Audience, Expires: time.Unix(0, 0)}, nil
	}}
	made, err := w.manager.mount(t.Context(), pod, &pod.Template.Spec.Volumes[0], src)
	must(t, err)
	if want := filepath.Join(w.dir, "kubelet/pods/one/volumes/kubernetes.io~csi/v/mount"); made.Path != want {
		t.Errorf("the volume is at %s, want %s", made.Path, want)
	}
	for name, want := range map[string]string{
		"a": "b", "csi.storage.k8s.io/pod.name": "one", "csi.storage.k8s.io/pod.uid": "one", "csi.storage.k8s.io/pod.namespace": "default",
		"csi.storage.k8s.io/serviceAccount.name": "default", "csi.storage.k8s.io/ephemeral": "true",
		"csi.storage.k8s.io/serviceAccount.tokens": `{"vault":{"token":"token for vault","expirationTimestamp":"1970-01-01T00:00:00Z"}}`,
	} {
		if got := w.driver.Told()[name]; got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if got := w.driver.Secrets("NodePublishVolume")["k"]; got != "v" {
		t.Errorf("the secret is %q", got)
	}
	if uids, err := w.manager.List(t.Context()); err != nil || len(uids) != 1 || uids[0] != "one" {
		t.Errorf("pods with volumes are %v, %v", uids, err)
	}
	must(t, w.manager.Unmount(t.Context(), "one"))
	w.shows("")
	if _, err := w.persistent.Stage(t.Context(), madeByDriver("1Mi"), csi.Wish{Pod: pod}); err == nil {
		t.Error("a driver of inline volumes alone serves a claim")
	}
}

func TestDriverSecrets(t *testing.T) {
	w := newDriven(t)
	v := madeByDriver("1Mi")
	for _, which := range nodes.DriverSecrets() {
		name, namespace := nodes.SecretParameters(which)
		v.Parameters[name], v.Parameters[namespace] = which, "vault"
	}
	if _, err := w.persistent.Ensure(t.Context(), v); err == nil {
		t.Error("a volume is made without its Secret")
	}
	for _, which := range nodes.DriverSecrets() {
		w.configs[desired.Key{Kind: "Secret", Namespace: "vault", Name: which}] = &nodes.Config{Data: map[string][]byte{"for": []byte(which)}}
	}
	_, err := w.persistent.Ensure(t.Context(), v)
	must(t, err)
	_, err = w.persistent.Stage(t.Context(), v, csi.Wish{Pod: drivenPod("one")})
	must(t, err)
	larger := *v
	larger.Spec.Capacity = madeByDriver("2Mi").Spec.Capacity
	_, err = w.persistent.Ensure(t.Context(), &larger)
	must(t, err)
	snapshot := snapshotByDriver()
	snapshot.Parameters = v.Parameters
	_, err = w.persistent.Ensure(t.Context(), snapshot)
	must(t, err)
	must(t, w.persistent.Delete(t.Context(), snapshot))
	must(t, w.persistent.Delete(t.Context(), &larger))
	for call, want := range map[string]string{
		"CreateVolume": nodes.ProvisionerSecret, "ControllerPublishVolume": nodes.ControllerPublishSecret, "NodeStageVolume": nodes.NodeStageSecret,
		"NodePublishVolume": nodes.NodePublishSecret, "ControllerExpandVolume": nodes.ControllerExpandSecret, "NodeExpandVolume": nodes.NodeExpandSecret,
		"ControllerUnpublishVolume": nodes.ControllerPublishSecret, "DeleteVolume": nodes.ProvisionerSecret,
		"CreateSnapshot": nodes.SnapshotterSecret, "DeleteSnapshot": nodes.SnapshotterSecret,
	} {
		if got := w.driver.Secrets(call)["for"]; got != want {
			t.Errorf("%s has the Secret %q, want %q", call, got, want)
		}
	}
	if len(v.DriverConfigs()) != 8 {
		t.Errorf("the node needs %v", v.DriverConfigs())
	}
}

// TestVolumeOfAnotherNode uses a volume that another node made, takes it over with
// a size that it has yet to get, and leaves it to another again.
func TestVolumeOfAnotherNode(t *testing.T) {
	w := newDriven(t)
	status, err := w.persistent.Ensure(t.Context(), madeByDriver("1Mi"))
	must(t, err)
	if status.Reach == nil || len(status.Reach.Topology) != 0 {
		t.Errorf("of a driver without topology the node says %+v", status.Reach)
	}
	must(t, os.RemoveAll(w.persistent.home(madeByDriver("1Mi")))) // as if another node had made it
	v := madeByDriver("2Mi")
	v.Made, v.Maker, v.Size, v.Spec.CSI = true, "n2", 1<<20, status.Source
	stage := func() {
		t.Helper()
		status, err := w.persistent.Ensure(t.Context(), v)
		must(t, err)
		if status.Phase != nodes.VolumeReady {
			t.Fatalf("the volume is %+v", status)
		}
		_, err = w.persistent.Stage(t.Context(), v, csi.Wish{Pod: drivenPod("one")})
		must(t, err)
	}
	stage()
	w.shows("handle-of-pvc-1: size 1048576, on the node 1048576, attached \"here\", staged true, published 1\n")
	if held, err := w.persistent.Held(t.Context()); err != nil || len(held) != 0 {
		t.Errorf("of a volume of another node it keeps %+v, %v", held, err)
	}
	v.Maker = "n1"
	stage()
	w.shows("handle-of-pvc-1: size 2097152, on the node 2097152, attached \"here\", staged true, published 1\n")
	if held, err := w.persistent.Held(t.Context()); err != nil || len(held) != 1 {
		t.Errorf("of a volume that it looks after it keeps %+v, %v", held, err)
	}
	v.Maker = "n2"
	stage()
	if held, err := w.persistent.Held(t.Context()); err != nil || len(held) != 0 {
		t.Errorf("of a volume that it left to another it keeps %+v, %v", held, err)
	}
	must(t, w.manager.Unmount(t.Context(), "one"))
	must(t, w.persistent.Unstage(t.Context(), v, func() bool { return true }))
	w.shows("handle-of-pvc-1: size 2097152, on the node 2097152, attached \"\", staged false, published 0\n")
}

// TestDetachFromAnotherNode detaches where drivers attach.
func TestDetachFromAnotherNode(t *testing.T) {
	no := false
	for name, test := range map[string]struct {
		lacks []spec.ControllerServiceCapability_RPC_Type
		spec  storagev1.CSIDriverSpec
		calls int
	}{
		"attached":       {calls: 1},
		"never attached": {spec: storagev1.CSIDriverSpec{AttachRequired: &no}},
		"cannot attach":  {lacks: []spec.ControllerServiceCapability_RPC_Type{spec.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newDriven(t, test.lacks...)
			w.spec(test.spec)
			v := madeByDriver("1Mi")
			status, err := w.persistent.Ensure(t.Context(), v)
			must(t, err)
			v.Spec.CSI = status.Source
			w.driver.CutAt(1, false)
			err = w.persistent.Detach(t.Context(), v, "n2", "there")
			if test.calls > 0 && (err == nil || !strings.Contains(err.Error(), "from node n2, which its driver calls there")) || test.calls == 0 && err != nil {
				t.Errorf("detached with %v", err)
			}
			w.driver.CutAt(-1, false)
			must(t, w.persistent.Detach(t.Context(), v, "n2", "there"))
			if got := w.driver.Calls(); got != test.calls {
				t.Errorf("the driver was called %d times, want %d", got, test.calls)
			}
		})
	}
}
