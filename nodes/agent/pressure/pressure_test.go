package pressure

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/tallyman-dev/tallyman/nodes"
)

func TestShortages(t *testing.T) {
	const gib = 1 << 30
	for name, c := range map[string]struct {
		readings map[Signal]Reading
		want     []Signal
	}{
		"plenty":           {map[Signal]Reading{Memory: {Available: gib, Capacity: 4 * gib}, NodeFS: {Available: 20, Capacity: 100}, NodeFSFiles: {Available: 6, Capacity: 100}, ImageFS: {Available: 16, Capacity: 100}}, nil},
		"memory below":     {map[Signal]Reading{Memory: {Available: 100<<20 - 1, Capacity: 4 * gib}}, []Signal{Memory}},
		"memory just fits": {map[Signal]Reading{Memory: {Available: 100 << 20, Capacity: 4 * gib}}, nil},
		"disks":            {map[Signal]Reading{ImageFS: {Available: 14 * gib, Capacity: 100 * gib}, NodeFS: {Available: 9 * gib, Capacity: 100 * gib}, NodeFSFiles: {Available: 4000, Capacity: 100_000}}, []Signal{NodeFS, NodeFSFiles, ImageFS}},
		"files of images":  {map[Signal]Reading{ImageFSFiles: {Available: 4000, Capacity: 100_000}}, []Signal{ImageFSFiles}},
		"nothing read":     {nil, nil},
		"no inodes at all": {map[Signal]Reading{NodeFSFiles: {Available: 0, Capacity: 0}}, nil},
	} {
		var got []Signal
		for _, s := range Shortages(c.readings) {
			got = append(got, s.Signal)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// of is a pod with a priority that requests and uses mebibytes of memory.
func of(uid string, priority int32, request string, usage int64) Pod {
	c := corev1.Container{Name: "a"}
	if request != "" {
		c.Resources.Requests = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(request)}
	}
	return Pod{
		Pod:        &nodes.Pod{UID: nodes.UID(uid), Template: &nodes.Template{Spec: corev1.PodSpec{Priority: &priority, Containers: []corev1.Container{c}}}},
		Containers: []Container{{Name: "a", Memory: usage << 20}},
	}
}

func TestRankIsKubernetesOrder(t *testing.T) {
	pods := []Pod{
		of("within, high", 10, "200Mi", 100),
		of("within, low, near", 0, "200Mi", 190),
		of("within, low, far", 0, "200Mi", 10),
		of("beyond, high", 10, "100Mi", 500),
		of("beyond, low, little", 0, "100Mi", 110),
		of("beyond, low, much", 0, "", 90),
		of("critical", systemCritical, "", 5000),
	}
	var got []nodes.UID
	for _, p := range Rank(Short{Signal: Memory}, pods) {
		got = append(got, p.UID)
	}
	want := []nodes.UID{"beyond, low, much", "beyond, low, little", "beyond, high", "within, low, near", "within, low, far", "within, high"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	slices.Reverse(pods)
	if again := Rank(Short{Signal: Memory}, pods); again[0].UID != want[0] || again[5].UID != want[5] {
		t.Error("the order depends on where pods stood before")
	}
}

// TestRequestsAreTheWholePods: a sidecar's request counts as its use does, and
// what an init container needed is the pod's for good.
func TestRequestsAreTheWholePods(t *testing.T) {
	within := of("within", 0, "100Mi", 90)
	sidecar := corev1.Container{Name: "s", RestartPolicy: new(corev1.ContainerRestartPolicyAlways)}
	sidecar.Resources.Requests = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("200Mi")}
	within.Template.Spec.InitContainers = []corev1.Container{sidecar}
	within.Containers = append(within.Containers, Container{Name: "s", Memory: 190 << 20})
	started := of("init", 0, "100Mi", 150)
	init := sidecar
	init.RestartPolicy = nil
	started.Template.Spec.InitContainers = []corev1.Container{init}
	whole := of("pod level", 0, "", 150)
	whole.Template.Spec.Resources = &corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("160Mi")}}
	beyond := of("beyond", 1000, "100Mi", 101)
	if first := Rank(Short{Signal: Memory}, []Pod{within, started, whole, beyond})[0]; first.UID != "beyond" {
		t.Errorf("%s goes first, which keeps to its request", first.UID)
	}
}

// TestDiskIsMeasuredAsItIsShort: by files when those are short, and only by
// what lies on the disk that is short.
func TestDiskIsMeasuredAsItIsShort(t *testing.T) {
	holding := func(uid string, layer, logs, volume nodes.DiskUsage) Pod {
		p := of(uid, 0, "", 0)
		p.Containers = []Container{{Name: "a", Layer: layer, Logs: logs}}
		p.Volumes = map[string]nodes.DiskUsage{"v": volume}
		return p
	}
	pods := []Pod{
		holding("layer", nodes.DiskUsage{Bytes: 3000, Files: 1}, nodes.DiskUsage{Bytes: 1}, nodes.DiskUsage{}),
		holding("logs", nodes.DiskUsage{Bytes: 1}, nodes.DiskUsage{Bytes: 2500, Files: 3}, nodes.DiskUsage{}),
		holding("files", nodes.DiskUsage{Bytes: 1}, nodes.DiskUsage{}, nodes.DiskUsage{Bytes: 10, Files: 5000}),
	}
	for _, c := range []struct {
		short Short
		want  nodes.UID
	}{
		{Short{Signal: NodeFS}, "layer"},
		{Short{Signal: ImageFS}, "layer"},
		{Short{Signal: NodeFSFiles}, "files"},
		{Short{Signal: ImageFSFiles}, "files"},
		{Short{Signal: NodeFS, Apart: true}, "logs"},
		{Short{Signal: ImageFS, Apart: true}, "layer"},
		{Short{Signal: NodeFSFiles, Apart: true}, "files"},
		{Short{Signal: ImageFSFiles, Apart: true}, "layer"},
	} {
		if first := Rank(c.short, pods)[0]; first.UID != c.want {
			t.Errorf("%+v: %s goes first, want %s", c.short, first.UID, c.want)
		}
	}
	short := Shortages(map[Signal]Reading{NodeFS: {Available: 50, Capacity: 100, Device: 1}, ImageFS: {Available: 1, Capacity: 100, Device: 2}})
	if len(short) != 1 || !short[0].Apart {
		t.Errorf("images on a disk of their own: %+v", short)
	}
	short = Shortages(map[Signal]Reading{NodeFS: {Available: 1, Capacity: 100, Device: 1}, ImageFS: {Available: 50, Capacity: 100, Device: 1}})
	if len(short) != 1 || short[0].Apart {
		t.Errorf("one disk for all: %+v", short)
	}
}

func TestWhyIsInKubernetesWords(t *testing.T) {
	p := of("u", 0, "100Mi", 200)
	got := Why(Short{Signal: Memory, Reading: Reading{Available: 50 << 20, Capacity: 1 << 30}, Threshold: 100 << 20}, &p)
	want := "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. " +
		"Container a was using 200Mi, request is 100Mi, has larger consumption of memory. "
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestExcess(t *testing.T) {
	limited := func(limit string) corev1.Container {
		c := corev1.Container{Name: "a"}
		if limit != "" {
			c.Resources.Limits = corev1.ResourceList{corev1.ResourceEphemeralStorage: resource.MustParse(limit)}
		}
		return c
	}
	second := func(limit string) corev1.Container {
		c := limited(limit)
		c.Name = "b"
		return c
	}
	volume := corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: new(resource.MustParse("1Mi"))}}}
	for name, c := range map[string]struct {
		containers []corev1.Container
		used       []Container
		volume     int64
		want       string
	}{
		"all within":       {[]corev1.Container{limited("2Mi")}, []Container{{Name: "a", Layer: nodes.DiskUsage{Bytes: 1 << 20}}}, 1 << 20, ""},
		"volume":           {[]corev1.Container{limited("")}, nil, 1<<20 + 1, `Usage of EmptyDir volume "v" exceeds the limit "1Mi". `},
		"volume counts":    {[]corev1.Container{limited("1Mi")}, []Container{{Name: "a", Layer: nodes.DiskUsage{Bytes: 1}}}, 1 << 20, "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi. "},
		"one container":    {[]corev1.Container{limited("1Mi"), second("9Mi")}, []Container{{Name: "a", Layer: nodes.DiskUsage{Bytes: 2 << 20}}}, 0, `Container a exceeded its local ephemeral storage limit "1Mi". `},
		"no limit, no end": {[]corev1.Container{limited("")}, []Container{{Name: "a", Layer: nodes.DiskUsage{Bytes: 1 << 40}}}, 0, ""},
	} {
		p := &Pod{
			Pod:        &nodes.Pod{Template: &nodes.Template{Spec: corev1.PodSpec{Containers: c.containers, Volumes: []corev1.Volume{volume}}}},
			Containers: c.used, Volumes: map[string]nodes.DiskUsage{"v": {Bytes: c.volume}},
		}
		if diff := cmp.Diff(c.want, Excess(p)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if !Limited(&p.Template.Spec) {
			t.Errorf("%s: nobody would look", name)
		}
	}
	if Limited(&corev1.PodSpec{Containers: []corev1.Container{limited("")}}) {
		t.Error("a pod without limits is measured")
	}
}
