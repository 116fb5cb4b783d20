package wire

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"pgregory.net/rapid"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/wire/pb"
	"github.com/tallyman-dev/tallyman/proxy"
)

var same = cmp.Options{
	cmpopts.EquateEmpty(),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmp.Comparer(func(a, b resource.Quantity) bool { return a.Equal(b) }),
}

// transmit sends messages through their encoding, as a stream would.
func transmit[M proto.Message](t *rapid.T, m M) M {
	encoded, err := proto.Marshal(m)
	if err != nil {
		t.Fatalf("encode: %v", err)
	}
	if len(encoded) > maxMessage {
		t.Fatalf("message of %d bytes", len(encoded))
	}
	out := m.ProtoReflect().New().Interface()
	if err := proto.Unmarshal(encoded, out); err != nil {
		t.Fatalf("decode: %v", err)
	}
	return out.(M)
}

// sizes are mostly small; a few values are large enough to split messages.
var sizes = []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 1000}

func drawTemplate(t *rapid.T) *nodes.Template {
	n := rapid.IntRange(0, 5).Draw(t, "template")
	return &nodes.Template{
		// Two contents share a hash: a hash is a name, not a proof.
		Hash:           fmt.Sprintf("hash%d", n/2),
		Labels:         map[string]string{"app": "web", "n": fmt.Sprint(n)},
		RuntimeHandler: []string{"", "kata"}[n%2],
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "c", Image: fmt.Sprintf("image:%d", n),
			Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m")}},
		}}},
	}
}

func drawPod(t *rapid.T, uid string, templates []*nodes.Template) *nodes.Pod {
	template := rapid.SampledFrom(templates).Draw(t, "of")
	p := &nodes.Pod{
		UID: nodes.UID(uid), Namespace: "default", Name: "web-" + uid, Ordinal: -1,
		Owner:    desired.Key{Group: "apps", Kind: "ReplicaSet", Namespace: "default", Name: "web-" + template.Hash},
		Workload: desired.Key{Group: "apps", Kind: "Deployment", Namespace: "default", Name: "web"},
		Template: template, TemplateHash: template.Hash, Incarnation: rapid.Uint64().Draw(t, "incarnation"),
		Node: "n1", Revision: "abc", Created: time.Unix(1700000000, 5).UTC(),
	}
	if rapid.Bool().Draw(t, "ordinal") {
		p.Ordinal, p.Hostname, p.Subdomain = 2, p.Name, "sub"
		p.Labels, p.Annotations = map[string]string{"index": "2"}, map[string]string{"a": "b"}
		p.Claims = map[string]string{"data": "data-" + p.Name}
		p.Seal = []byte{1, 2}
	}
	if rapid.Bool().Draw(t, "stop") {
		p.Stop = &nodes.Stop{Grace: time.Duration(rapid.IntRange(0, 30).Draw(t, "grace")) * time.Second, Reason: "scaled \xff down"}
	}
	return p
}

func drawVolume(t *rapid.T, name string) *nodes.Volume {
	return &nodes.Volume{
		Name: name, UID: "u" + name, Claim: desired.Key{Kind: "PersistentVolumeClaim", Namespace: "default", Name: "data"},
		Provisioner: nodes.LocalProvisioner, Class: "local", Parameters: map[string]string{"k": "v"}, Node: "n1",
		Made: rapid.Bool().Draw(t, "made"), Released: rapid.SampledFrom([]time.Time{{}, time.Unix(8, 0).UTC()}).Draw(t, "released"),
		Spec:   corev1.PersistentVolumeSpec{Capacity: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(rapid.SampledFrom([]string{"1Gi", "2Gi"}).Draw(t, "capacity"))}},
		Delete: rapid.Bool().Draw(t, "delete"), Snapshot: rapid.Bool().Draw(t, "snapshot"),
		Seal:  rapid.SampledFrom([][]byte{nil, {1, 2}}).Draw(t, "volume seal"),
		Maker: rapid.SampledFrom([]string{"", "n2"}).Draw(t, "maker"), Size: rapid.SampledFrom([]int64{0, 1 << 30}).Draw(t, "bytes"),
		Reach:  rapid.SampledFrom([]*nodes.Reach{nil, {}, {Topology: []map[string]string{{"zone": "a", "rack": "1"}, {"zone": "b"}}}}).Draw(t, "reach"),
		Detach: rapid.SampledFrom([][]nodes.Detachment{nil, {{Node: "n3", ID: "three", By: []string{"n1", "n2"}}}}).Draw(t, "detach"),
		From:   rapid.SampledFrom([]*nodes.Origin{nil, {Name: "v", UID: "u"}, {Name: "v", UID: "u", Volume: "h"}, {Name: "s", UID: "u", Snapshot: "h"}}).Draw(t, "from"),
	}
}

// TestAssignmentDifferencesAddUp: whatever assignments follow each other, the
// agent ends with the newest one.
func TestAssignmentDifferencesAddUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, r := newSender(newTableDiffs()), newReceiver()
		s.part = 1500
		pods := map[string]*nodes.Pod{}
		configs := map[string]*nodes.Config{}
		volumes := map[string]*nodes.Volume{}
		for step := range rapid.IntRange(1, 8).Draw(t, "steps") {
			templates := []*nodes.Template{drawTemplate(t), drawTemplate(t), drawTemplate(t)}
			for range rapid.IntRange(0, 6).Draw(t, "changes") {
				uid := fmt.Sprint(rapid.IntRange(0, 9).Draw(t, "uid"))
				if rapid.Bool().Draw(t, "drop") {
					delete(pods, uid)
					delete(configs, uid)
					delete(volumes, uid)
					continue
				}
				volumes[uid] = drawVolume(t, uid)
				pods[uid] = drawPod(t, uid, templates)
				configs[uid] = &nodes.Config{
					Key:     desired.Key{Kind: "ConfigMap", Namespace: "default", Name: uid},
					Version: fmt.Sprint(step), Data: map[string][]byte{"k": []byte(strings.Repeat("x", rapid.SampledFrom(sizes).Draw(t, "size")))},
					Binary: []string{"k"},
				}
			}
			want := &nodes.Assignment{Node: "n1", Network: desired.DefaultSettings().Network}
			for _, uid := range slices.Sorted(maps.Keys(pods)) {
				want.Pods = append(want.Pods, pods[uid])
			}
			for _, uid := range slices.Sorted(maps.Keys(configs)) {
				want.Configs = append(want.Configs, configs[uid])
			}
			for _, name := range slices.Sorted(maps.Keys(volumes)) {
				want.Volumes = append(want.Volumes, volumes[name])
			}
			uids := rapid.SliceOfN(rapid.Map(rapid.IntRange(0, 9), func(n int) nodes.UID { return nodes.UID(fmt.Sprint(n)) }), 0, 2)
			want.Fenced, want.Session = uids.Draw(t, "fenced"), rapid.Uint64Range(0, 2).Draw(t, "session")
			want.PodCIDR = rapid.SampledFrom([]netip.Prefix{{}, netip.MustParsePrefix("10.244.3.0/24")}).Draw(t, "range")
			want.Measured = uids.Draw(t, "measured")
			got := transmitAssignment(t, s, r, want)
			for _, p := range pods {
				if p.Stop != nil {
					p.Stop = &nodes.Stop{Grace: p.Stop.Grace, Reason: text(p.Stop.Reason)}
				}
			}
			if step > 0 && got == nil {
				again, err := s.assignment(want)
				if err != nil || again != nil {
					t.Fatalf("no difference was sent, yet there is one: %v %v", again, err)
				}
				continue
			}
			if diff := cmp.Diff(want, got, same); diff != "" {
				t.Fatalf("assignment after step %d (-want +got):\n%s", step, diff)
			}
		}
	})
}

func transmitAssignment(t *rapid.T, s *sender, r *receiver, a *nodes.Assignment) *nodes.Assignment {
	messages, err := s.assignment(a)
	if err != nil {
		t.Fatal(err)
	}
	var got *nodes.Assignment
	for i, m := range messages {
		if got, err = r.assignment(transmit(t, m).GetAssignment()); err != nil {
			t.Fatal(err)
		}
		if last := i == len(messages)-1; last != (got != nil) {
			t.Fatalf("part %d of %d gave %v", i+1, len(messages), got)
		}
	}
	return got
}

// TestRouteDifferencesAddUp: the same for route tables, with streams that share
// their differences and are not at the same table; some share what they put
// together, too.
func TestRouteDifferencesAddUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		diffs, tables := newTableDiffs(), &Tables{}
		diffs.part = 1500
		type stream struct {
			*sender
			*receiver
		}
		var streams []stream
		for range 3 {
			to := stream{newSender(diffs), newReceiver()}
			if rapid.Bool().Draw(t, "shares") {
				to.tables = tables
			}
			streams = append(streams, to)
		}
		services := map[string]*proxy.Service{}
		peers := map[string]proxy.Node{}
		for generation := range uint64(rapid.IntRange(1, 8).Draw(t, "steps")) {
			for range rapid.IntRange(0, 5).Draw(t, "changes") {
				name := fmt.Sprint(rapid.IntRange(0, 9).Draw(t, "name"))
				if rapid.Bool().Draw(t, "drop") {
					delete(services, name)
					delete(peers, name)
					continue
				}
				peers[name] = proxy.Node{
					Name: name, Addr: netip.MustParseAddr("192.0.2.1"), PodCIDR: netip.MustParsePrefix("10.244.3.0/24"),
					Zone: rapid.SampledFrom([]string{"", "a"}).Draw(t, "zone"), WireGuard: "key",
				}
				services[name] = &proxy.Service{
					Namespace: "default", Name: name, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.7")},
					Affinity: time.Hour, Prefer: proxy.SameZone, HealthCheckPort: 30081,
					Ports: []proxy.Port{{Name: "http", Protocol: proxy.TCP, Port: 80, NodePort: 30080, Endpoints: []proxy.Endpoint{
						{Addr: netip.MustParseAddr("fd00::1"), Port: uint16(rapid.IntRange(1, 65535).Draw(t, "port")), Node: "n1", Pod: "p"},
					}}},
				}
			}
			want := &proxy.Table{Generation: generation + 1, Domain: "cluster.local"}
			for _, name := range slices.Sorted(maps.Keys(services)) {
				want.Services = append(want.Services, services[name])
			}
			for _, name := range slices.Sorted(maps.Keys(peers)) {
				want.Nodes = append(want.Nodes, peers[name])
			}
			for i, to := range streams {
				if i > 0 && rapid.Bool().Draw(t, "lags") {
					continue
				}
				var got *proxy.Table
				var err error
				for _, m := range to.sender.routes(want) {
					if got, err = to.receiver.routes(transmit(t, m).GetRoutes()); err != nil {
						t.Fatal(err)
					}
				}
				if diff := cmp.Diff(want, got, same); diff != "" {
					t.Fatalf("table of stream %d (-want +got):\n%s", i, diff)
				}
			}
		}
	})
}

// BenchmarkRouteChange is one changed service of 5,000 on its way to one more
// of many nodes.
func BenchmarkRouteChange(b *testing.B) {
	table := &proxy.Table{Generation: 1}
	for i := range 5000 {
		table.Services = append(table.Services, &proxy.Service{Namespace: "default", Name: fmt.Sprintf("s%04d", i)})
	}
	next := *table
	next.Generation, next.Services = 2, slices.Clone(table.Services)
	next.Services[2500] = &proxy.Service{Namespace: "default", Name: "s2500", Affinity: time.Hour}
	diffs := newTableDiffs()
	s := newSender(diffs)
	for b.Loop() {
		s.table = table
		if len(s.routes(&next)) != 1 {
			b.Fatal("not one message")
		}
	}
}

func TestTemplatesCrossOnce(t *testing.T) {
	s := newSender(newTableDiffs())
	template := &nodes.Template{Hash: "h", Spec: corev1.PodSpec{NodeName: "n"}}
	copied := *template
	count := func(a *nodes.Assignment) (templates, pods, gone int) {
		messages, err := s.assignment(a)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range messages {
			d := m.GetAssignment()
			templates, pods, gone = templates+len(d.Templates), pods+len(d.Pods), gone+len(d.TemplatesGone)
		}
		return templates, pods, gone
	}
	a := &nodes.Pod{UID: "a", Template: template}
	b := &nodes.Pod{UID: "b", Template: template}
	c := &nodes.Pod{UID: "c", Template: &copied}
	for _, step := range []struct {
		pods []*nodes.Pod
		want [3]int
	}{
		{[]*nodes.Pod{a, b}, [3]int{1, 2, 0}},
		{[]*nodes.Pod{a, b, c}, [3]int{0, 1, 0}},
		{[]*nodes.Pod{a, b, c}, [3]int{0, 0, 0}},
		{[]*nodes.Pod{c}, [3]int{0, 0, 0}},
		{nil, [3]int{0, 0, 1}},
		{[]*nodes.Pod{a}, [3]int{1, 1, 0}},
	} {
		templates, pods, gone := count(&nodes.Assignment{Node: "n", Pods: step.pods})
		if got := [3]int{templates, pods, gone}; got != step.want {
			t.Errorf("with %d pods: templates, pods, templates gone = %v, want %v", len(step.pods), got, step.want)
		}
	}
}

func TestReceiverRefusesHoles(t *testing.T) {
	s, r := newSender(newTableDiffs()), newReceiver()
	first, _ := s.assignment(&nodes.Assignment{Node: "n"})
	second, _ := s.assignment(&nodes.Assignment{Node: "n", Pods: []*nodes.Pod{{UID: "a"}}})
	if _, err := r.assignment(second[0].GetAssignment()); err == nil {
		t.Error("a difference without its beginning was accepted")
	}
	if _, err := r.assignment(first[0].GetAssignment()); err != nil {
		t.Errorf("first message: %v", err)
	}
	third := s.ledger(false, []nodes.Decision{{Kind: "k", Key: "x"}})
	if _, _, _, err := r.decisions(third[0].GetLedger()); err == nil {
		t.Error("a hole in the sequence was accepted")
	}
}

func drawImages(t *rapid.T) *nodes.Images {
	if rapid.Bool().Draw(t, "images unchanged") {
		return nil
	}
	var list []nodes.Image
	for i := range rapid.IntRange(0, 3).Draw(t, "images") {
		list = append(list, nodes.Image{Names: []string{fmt.Sprintf("docker.io/library/i:%d", i)}, Size: rapid.Int64Range(0, 5).Draw(t, "size")})
	}
	return nodes.NewImages(list)
}

func TestReportsSurviveTheirParts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := nodes.Report{
			Node: "n1", Complete: rapid.Bool().Draw(t, "complete"), Routes: rapid.Uint64().Draw(t, "routes"),
			Info: &nodes.Node{
				Name: "n1", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, PodCIDR: netip.MustParsePrefix("10.244.0.0/24"),
				Capacity: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi")}, BootID: "b", Drivers: []string{"hostpath.csi.k8s.io"},
				DriverNodes: []nodes.DriverNode{{Name: "hostpath.csi.k8s.io", ID: "n", Controller: true, MaxVolumes: 9}},
				WireGuard:   "key", Problems: []string{"no network"},
				Taints: []corev1.Taint{{Key: corev1.TaintNodeMemoryPressure, Effect: corev1.TaintEffectNoSchedule}},
			},
			Images: drawImages(t),
			Gone:   []nodes.UID{"x", "y"}, Left: []nodes.UID{"l"},
			Ledger: []nodes.Decision{{Kind: "service", Key: "a", Value: json.RawMessage(`{"a":1}`)}, {Kind: "k", Key: "forgotten"}},
			Events: []nodes.Event{{Reason: "Pulled", Message: "ok", Count: 3, Last: time.Unix(5, 0).UTC()}},
			Volumes: []nodes.VolumeStatus{
				{
					Name: "v", UID: "u", Phase: nodes.VolumeReady, Capacity: 1 << 40, Unenforced: "no quota", Held: drawVolume(t, "v"),
					Reach: &nodes.Reach{Topology: []map[string]string{{"zone": "a"}}}, Use: nodes.VolumeUsed, Detach: []nodes.DetachStatus{{Node: "n3", Done: true}, {Node: "n4"}},
				},
				{Name: "w", Phase: nodes.VolumeFailed, Reason: "Full", Message: "no space", Source: &corev1.CSIPersistentVolumeSource{Driver: "d", VolumeHandle: "h", VolumeAttributes: map[string]string{"a": "b"}}},
			},
			Usage: []nodes.Usage{{Pod: "1", At: time.Unix(6, 0).UTC(), Window: time.Second, Containers: []nodes.ContainerUsage{{Name: "c", CPU: 5, Memory: 7}}}},
		}
		templates := []*nodes.Template{drawTemplate(t), drawTemplate(t)}
		filler := strings.Repeat("m", rapid.SampledFrom(sizes).Draw(t, "size"))
		for i := range rapid.IntRange(0, 9).Draw(t, "pods") {
			uid := fmt.Sprint(i)
			pod := drawPod(t, uid, templates)
			pod.Stop = nil
			want.Held = append(want.Held, pod)
			want.Statuses = append(want.Statuses, nodes.PodStatus{
				UID: nodes.UID(uid), Phase: corev1.PodRunning, Ready: true, ReadySince: time.Unix(9, 9).UTC(), Message: filler,
				Containers: []nodes.ContainerStatus{{Name: "c", State: nodes.Running, Restarts: 2, Last: &nodes.Termination{ExitCode: 137, FinishedAt: time.Unix(7, 0).UTC()}}},
			})
		}
		parts, err := encodeReport(want, 1500)
		if err != nil {
			t.Fatal(err)
		}
		reader := reportReader{node: "n1"}
		var got *nodes.Report
		for _, part := range parts {
			if got, err = reader.add(transmit(t, part).GetReport()); err != nil {
				t.Fatal(err)
			}
		}
		if got == nil {
			t.Fatalf("%d parts made no report", len(parts))
		}
		if diff := cmp.Diff(want, *got, same); diff != "" {
			t.Fatalf("report (-want +got):\n%s", diff)
		}
	})
}

// FuzzDecode: no message of a peer, however wrong, may panic.
func FuzzDecode(f *testing.F) {
	s := newSender(newTableDiffs())
	messages, err := s.assignment(&nodes.Assignment{Node: "n", Pods: []*nodes.Pod{{UID: "a", Template: &nodes.Template{Hash: "h"}}}})
	if err != nil {
		f.Fatal(err)
	}
	messages = append(messages, s.routes(&proxy.Table{Generation: 1, Services: []*proxy.Service{{Namespace: "d", Name: "s", ClusterIPs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}}})...)
	messages = append(messages, s.ledger(true, []nodes.Decision{{Kind: "k", Key: "x", Value: json.RawMessage("{}")}})...)
	for _, m := range messages {
		encoded, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(encoded)
	}
	reports, err := encodeReport(nodes.Report{Complete: true, Info: &nodes.Node{Name: "n"}, Held: []*nodes.Pod{{UID: "a"}}}, maxPart)
	if err != nil {
		f.Fatal(err)
	}
	encoded, err := proto.Marshal(reports[0])
	if err != nil {
		f.Fatal(err)
	}
	f.Add(encoded)
	f.Fuzz(func(t *testing.T, data []byte) {
		down := &pb.ServerMessage{}
		if proto.Unmarshal(data, down) == nil {
			state := newReceiver()
			_ = handOn(state, down, nopHandler{})
			_ = handOn(state, down, nopHandler{})
		}
		up := &pb.AgentMessage{}
		if proto.Unmarshal(data, up) == nil {
			_, _ = negotiate(up.GetHello())
			if part := up.GetReport(); part != nil {
				_, _ = (&reportReader{}).add(part)
			}
		}
	})
}

// TestTablesAreShared: equal differences of one table make one table.
func TestTablesAreShared(t *testing.T) {
	tables, diffs := &Tables{}, newTableDiffs()
	peer := func(name string) proxy.Node {
		return proxy.Node{Name: name, Addr: netip.MustParseAddr("192.0.2.1"), PodCIDR: netip.MustParsePrefix("10.244.3.0/24")}
	}
	first := &proxy.Table{Generation: 1, Nodes: []proxy.Node{peer("a")}}
	second := &proxy.Table{Generation: 2, Nodes: []proxy.Node{peer("a"), peer("b")}}
	var got [2][2]*proxy.Table
	for i := range got {
		s, r := newSender(diffs), newReceiver()
		r.tables = tables
		for j, want := range []*proxy.Table{first, second} {
			messages := s.routes(want)
			table, err := r.routes(messages[0].GetRoutes())
			if err != nil || len(messages) != 1 {
				t.Fatal(len(messages), err)
			}
			if diff := cmp.Diff(want, table, same); diff != "" {
				t.Fatalf("stream %d, table %d (-want +got):\n%s", i, j, diff)
			}
			got[i][j] = table
		}
	}
	if got[0][1] != got[1][1] {
		t.Error("two receivers with the newest table have a copy each")
	}
}
