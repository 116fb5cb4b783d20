package wire

import (
	"net/netip"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/wire/pb"
	"github.com/tallyman-dev/tallyman/proxy"
)

const (
	// maxPart is where a message is split, unless a single item is larger.
	maxPart = 1 << 20
	// maxMessage bounds what a peer accepts: more than the largest file that a
	// repository may hold.
	maxMessage = 32 << 20
)

// sender is the server's memory of what one stream's agent has been told: it
// turns complete values into the differences that are still to send. The
// caller sends what it returns, or ends the stream.
type sender struct {
	seq uint64
	// part is where messages are split.
	part int

	assigned  bool
	network   desired.Network
	templates *templateRefs
	pods      map[nodes.UID]sentPod
	configs   map[desired.Key]string
	volumes   map[string]*nodes.Volume
	measured  []nodes.UID
	fenced    []nodes.UID
	podCIDR   netip.Prefix
	session   uint64

	// table is what the agent has of routes; nil for none. What leads from there to
	// another is shared with other streams.
	table *proxy.Table
	diffs *tableDiffs
}

type sentPod struct {
	pod *nodes.Pod
	ref uint64
}

func newSender(diffs *tableDiffs) *sender {
	return &sender{
		part:      maxPart,
		templates: newTemplateRefs(),
		pods:      map[nodes.UID]sentPod{},
		configs:   map[desired.Key]string{},
		volumes:   map[string]*nodes.Volume{},
		diffs:     diffs,
	}
}

// assignment returns the messages that turn the last assignment into a; none
// when they are the same.
func (s *sender) assignment(a *nodes.Assignment) ([]*pb.ServerMessage, error) {
	out := newAssignmentParts(s.part, &pb.AssignmentDelta{Complete: !s.assigned, Node: a.Node})
	if err := s.addPods(out, a.Pods); err != nil {
		return nil, err
	}
	s.dropPods(out, a.Pods)
	s.addConfigs(out, a.Configs)
	if err := s.addVolumes(out, a.Volumes); err != nil {
		return nil, err
	}
	s.addMeasured(out, a.Measured)
	s.addFenced(out, a.Fenced)
	if s.assigned && s.network == a.Network && s.podCIDR == a.PodCIDR && s.session == a.Session && out.empty() {
		return nil, nil
	}
	first := out.parts[0]
	first.Network, first.PodCidr, first.Session = encodeNetwork(a.Network), encodePrefix(a.PodCIDR), a.Session
	s.assigned, s.network, s.podCIDR, s.session = true, a.Network, a.PodCIDR, a.Session
	messages := make([]*pb.ServerMessage, len(out.parts))
	for i, part := range out.parts {
		s.seq++
		part.Seq, part.More = s.seq, i < len(out.parts)-1
		messages[i] = &pb.ServerMessage{Message: &pb.ServerMessage_Assignment{Assignment: part}}
	}
	return messages, nil
}

func (s *sender) addPods(out *assignmentParts, pods []*nodes.Pod) error {
	for _, p := range pods {
		sent, known := s.pods[p.UID]
		if known && sent.pod == p {
			continue
		}
		ref, template, err := s.templates.ref(p.Template)
		if err != nil {
			return err
		}
		if template != nil {
			part := out.room(template)
			part.Templates = append(part.Templates, template)
		}
		if !known || sent.ref != ref || !samePod(sent.pod, p) {
			message := encodePod(p, ref)
			part := out.room(message)
			part.Pods = append(part.Pods, message)
		}
		s.pods[p.UID] = sentPod{pod: p, ref: ref}
	}
	return nil
}

// samePod compares everything but the template.
func samePod(a, b *nodes.Pod) bool { return proto.Equal(encodePod(a, 0), encodePod(b, 0)) }

// dropPods takes away the pods that are no longer there, and the templates
// that nobody uses any more.
func (s *sender) dropPods(out *assignmentParts, pods []*nodes.Pod) {
	present := make(map[nodes.UID]bool, len(pods))
	for _, p := range pods {
		present[p.UID] = true
	}
	var gone []string
	for uid := range s.pods {
		if !present[uid] {
			gone = append(gone, string(uid))
			delete(s.pods, uid)
		}
	}
	slices.Sort(gone)
	used := make(map[uint64]bool, len(s.pods))
	for _, sent := range s.pods {
		used[sent.ref] = true
	}
	last := out.parts[len(out.parts)-1]
	last.PodsGone, last.TemplatesGone = gone, s.templates.retain(used)
}

func (s *sender) addConfigs(out *assignmentParts, configs []*nodes.Config) {
	present := make(map[desired.Key]bool, len(configs))
	for _, c := range configs {
		present[c.Key] = true
		if version, known := s.configs[c.Key]; known && version == c.Version {
			continue
		}
		s.configs[c.Key] = c.Version
		message := encodeConfig(c)
		part := out.room(message)
		part.Configs = append(part.Configs, message)
	}
	var gone []desired.Key
	for key := range s.configs {
		if !present[key] {
			gone = append(gone, key)
			delete(s.configs, key)
		}
	}
	slices.SortFunc(gone, desired.Key.Compare)
	last := out.parts[len(out.parts)-1]
	last.ConfigsGone = each(gone, encodeKey)
}

func (s *sender) addVolumes(out *assignmentParts, volumes []*nodes.Volume) error {
	present := make(map[string]bool, len(volumes))
	for _, v := range volumes {
		present[v.Name] = true
		sent := s.volumes[v.Name]
		if sent == v {
			continue
		}
		s.volumes[v.Name] = v
		message, err := encodeVolume(v)
		if err != nil {
			return err
		}
		if before, err := encodeVolume(sent); err == nil && sent != nil && proto.Equal(before, message) {
			continue
		}
		part := out.room(message)
		part.Volumes = append(part.Volumes, message)
	}
	var gone []string
	for name := range s.volumes {
		if !present[name] {
			gone = append(gone, name)
			delete(s.volumes, name)
		}
	}
	slices.Sort(gone)
	out.parts[len(out.parts)-1].VolumesGone = gone
	return nil
}

func (s *sender) addMeasured(out *assignmentParts, pods []nodes.UID) {
	if slices.Equal(s.measured, pods) {
		return
	}
	s.measured = pods
	out.parts[len(out.parts)-1].Measured = &pb.Measured{Pods: each(pods, encodeUID)}
}

func (s *sender) addFenced(out *assignmentParts, pods []nodes.UID) {
	if slices.Equal(s.fenced, pods) {
		return
	}
	s.fenced = pods
	out.parts[len(out.parts)-1].Fenced = &pb.Fenced{Pods: each(pods, encodeUID)}
}

// routes returns the messages that turn the last route table into t.
func (s *sender) routes(t *proxy.Table) []*pb.ServerMessage {
	if s.table != nil && s.table.Generation == t.Generation && s.table.Domain == t.Domain {
		return nil
	}
	parts := s.diffs.between(s.table, t)
	s.table = t
	messages := make([]*pb.ServerMessage, len(parts))
	for i, p := range parts {
		s.seq++
		placed := &pb.RouteDelta{
			Seq: s.seq, More: p.GetMore(), Complete: p.GetComplete(), Generation: p.GetGeneration(), Domain: p.GetDomain(),
			Services: p.GetServices(), Gone: p.GetGone(), Nodes: p.GetNodes(), NodesGone: p.GetNodesGone(),
		}
		messages[i] = &pb.ServerMessage{Message: &pb.ServerMessage_Routes{Routes: placed}}
	}
	return messages
}

// ledger returns the messages that tell decisions: all of them when complete.
func (s *sender) ledger(complete bool, decisions []nodes.Decision) []*pb.ServerMessage {
	if len(decisions) == 0 && !complete {
		return nil
	}
	parts := []*pb.LedgerDelta{{Complete: complete}}
	size := 0
	for _, d := range decisions {
		message := encodeDecision(d)
		if size += proto.Size(message); size > s.part {
			size = 0
			parts = append(parts, &pb.LedgerDelta{Complete: complete})
		}
		part := parts[len(parts)-1]
		part.Decisions = append(part.Decisions, message)
	}
	messages := make([]*pb.ServerMessage, len(parts))
	for i, part := range parts {
		s.seq++
		part.Seq, part.More = s.seq, i < len(parts)-1
		messages[i] = &pb.ServerMessage{Message: &pb.ServerMessage_Ledger{Ledger: part}}
	}
	return messages
}

// assignmentParts splits one assignment's difference into messages of a
// bounded size.
type assignmentParts struct {
	parts       []*pb.AssignmentDelta
	size, limit int
}

func newAssignmentParts(limit int, first *pb.AssignmentDelta) *assignmentParts {
	return &assignmentParts{parts: []*pb.AssignmentDelta{first}, limit: limit}
}

// room returns the part that has room for m, or a new one.
func (p *assignmentParts) room(m proto.Message) *pb.AssignmentDelta {
	n := proto.Size(m)
	if p.size > 0 && p.size+n > p.limit {
		first := p.parts[0]
		p.parts = append(p.parts, &pb.AssignmentDelta{Complete: first.Complete, Node: first.Node})
		p.size = 0
	}
	p.size += n
	return p.parts[len(p.parts)-1]
}

// empty reports whether nothing differs.
func (p *assignmentParts) empty() bool {
	d := p.parts[0]
	return len(p.parts) == 1 && len(d.Templates) == 0 && len(d.TemplatesGone) == 0 &&
		len(d.Pods) == 0 && len(d.PodsGone) == 0 && len(d.Configs) == 0 && len(d.ConfigsGone) == 0 &&
		len(d.Volumes) == 0 && len(d.VolumesGone) == 0 && d.Measured == nil && d.Fenced == nil
}
