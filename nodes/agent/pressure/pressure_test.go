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
		"plenty":           {map[Signal]Reading{Memory: {gib, 4 * gib}, NodeFS: {20, 100}, NodeFSFiles: {6, 100}, ImageFS: {16, 100}}, nil},
		"memory below":     {map[Signal]Reading{Memory: {100<<20 - 1, 4 * gib}}, []Signal{Memory}},
		"memory just fits": {map[Signal]Reading{Memory: {100 << 20, 4 * gib}}, nil},
		"disks":            {map[Signal]Reading{ImageFS: {14 * gib, 100 * gib}, NodeFS: {9 * gib, 100 * gib}, NodeFSFiles: {4000, 100_000}}, []Signal{NodeFS, NodeFSFiles, ImageFS}},
		"nothing read":     {nil, nil},
		"no inodes at all": {map[Signal]Reading{NodeFSFiles: {0, 0}}, nil},
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
	for _, p := range Rank(Memory, pods) {
		got = append(got, p.UID)
	}
	want := []nodes.UID{"beyond, low, much", "beyond, low, little", "beyond, high", "within, low, near", "within, low, far", "within, high"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	slices.Reverse(pods)
	if again := Rank(Memory, pods); again[0].UID != want[0] || again[5].UID != want[5] {
		t.Error("the order depends on where pods stood before")
	}
}

func TestWhyIsInKubernetesWords(t *testing.T) {
	p := of("u", 0, "100Mi", 200)
	got := Why(Short{Memory, Reading{50 << 20, 1 << 30}, 100 << 20}, &p)
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
		"all within":       {[]corev1.Container{limited("2Mi")}, []Container{{Name: "a", Disk: 1 << 20}}, 1 << 20, ""},
		"volume":           {[]corev1.Container{limited("")}, nil, 1<<20 + 1, `Usage of EmptyDir volume "v" exceeds the limit "1Mi". `},
		"volume counts":    {[]corev1.Container{limited("1Mi")}, []Container{{Name: "a", Disk: 1}}, 1 << 20, "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi. "},
		"one container":    {[]corev1.Container{limited("1Mi"), second("9Mi")}, []Container{{Name: "a", Disk: 2 << 20}}, 0, `Container a exceeded its local ephemeral storage limit "1Mi". `},
		"no limit, no end": {[]corev1.Container{limited("")}, []Container{{Name: "a", Disk: 1 << 40}}, 0, ""},
	} {
		p := &Pod{
			Pod:        &nodes.Pod{Template: &nodes.Template{Spec: corev1.PodSpec{Containers: c.containers, Volumes: []corev1.Volume{volume}}}},
			Containers: c.used, Volumes: map[string]int64{"v": c.volume},
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
