package wire

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/wire/pb"
)

// maxReport bounds one report in all its parts, in bytes on the wire.
const maxReport = 256 << 20

// encodeReport splits a report into messages of a bounded size.
func encodeReport(r nodes.Report, limit int) ([]*pb.AgentMessage, error) {
	out := &reportParts{limit: limit, parts: []*pb.Report{{Complete: r.Complete, Info: encodeNode(r.Info), Images: encodeImages(r.Images), Routes: r.Routes}}}
	for _, s := range r.Statuses {
		m := encodeStatus(s)
		part := out.room(m)
		part.Statuses = append(part.Statuses, m)
	}
	last := out.parts[len(out.parts)-1]
	last.Gone, last.Fenced, last.Left = each(r.Gone, encodeUID), each(r.Fenced, encodeUID), each(r.Left, encodeUID)
	if err := out.addHeld(r.Held); err != nil {
		return nil, err
	}
	for _, d := range r.Ledger {
		m := encodeDecision(d)
		part := out.room(m)
		part.Ledger = append(part.Ledger, m)
	}
	for _, e := range r.Events {
		m := encodeEvent(e)
		part := out.room(m)
		part.Events = append(part.Events, m)
	}
	for i := range r.Volumes {
		m, err := encodeVolumeStatus(&r.Volumes[i])
		if err != nil {
			return nil, err
		}
		part := out.room(m)
		part.Volumes = append(part.Volumes, m)
	}
	for _, u := range r.Usage {
		m := encodeUsage(u)
		part := out.room(m)
		part.Usage = append(part.Usage, m)
	}
	messages := make([]*pb.AgentMessage, len(out.parts))
	for i, part := range out.parts {
		part.More = i < len(out.parts)-1
		messages[i] = &pb.AgentMessage{Message: &pb.AgentMessage_Report{Report: part}}
	}
	return messages, nil
}

type reportParts struct {
	parts       []*pb.Report
	size, limit int
}

func (p *reportParts) room(m proto.Message) *pb.Report {
	n := proto.Size(m)
	if p.size > 0 && p.size+n > p.limit {
		p.parts = append(p.parts, &pb.Report{Complete: p.parts[0].Complete})
		p.size = 0
	}
	p.size += n
	return p.parts[len(p.parts)-1]
}

// addHeld sends each template before the first pod that bears it; refs count
// within this report.
func (p *reportParts) addHeld(held []*nodes.Pod) error {
	refs := newTemplateRefs()
	for _, pod := range held {
		ref, template, err := refs.ref(pod.Template)
		if err != nil {
			return err
		}
		if template != nil {
			part := p.room(template)
			part.Templates = append(part.Templates, template)
		}
		m := encodePod(pod, ref)
		part := p.room(m)
		part.Held = append(part.Held, m)
	}
	return nil
}

// reportReader puts reports together from their parts.
type reportReader struct {
	node      string
	report    nodes.Report
	templates map[uint64]*nodes.Template
	size      int
}

// add returns the report once all of its parts are there, nil before.
func (r *reportReader) add(part *pb.Report) (*nodes.Report, error) {
	if r.size += proto.Size(part); r.size > maxReport {
		return nil, fmt.Errorf("report of node %s is larger than %d MiB", r.node, maxReport>>20)
	}
	if r.templates == nil {
		r.templates = map[uint64]*nodes.Template{}
		r.report = nodes.Report{Node: r.node, Complete: part.GetComplete(), Routes: part.GetRoutes(), Images: decodeImages(part.GetImages())}
		info, err := decodeNode(part.GetInfo())
		if err != nil {
			return nil, err
		}
		r.report.Info = info
	}
	if err := r.addHeld(part); err != nil {
		return nil, err
	}
	r.report.Statuses = append(r.report.Statuses, each(part.GetStatuses(), decodeStatus)...)
	r.report.Gone = append(r.report.Gone, each(part.GetGone(), decodeUID)...)
	r.report.Fenced = append(r.report.Fenced, each(part.GetFenced(), decodeUID)...)
	r.report.Left = append(r.report.Left, each(part.GetLeft(), decodeUID)...)
	r.report.Ledger = append(r.report.Ledger, each(part.GetLedger(), decodeDecision)...)
	r.report.Events = append(r.report.Events, each(part.GetEvents(), decodeEvent)...)
	for _, v := range part.GetVolumes() {
		status, err := decodeVolumeStatus(v)
		if err != nil {
			return nil, err
		}
		r.report.Volumes = append(r.report.Volumes, status)
	}
	r.report.Usage = append(r.report.Usage, each(part.GetUsage(), decodeUsage)...)
	if part.GetMore() {
		return nil, nil
	}
	whole := r.report
	*r = reportReader{node: r.node}
	return &whole, nil
}

func (r *reportReader) addHeld(part *pb.Report) error {
	for _, t := range part.GetTemplates() {
		template, err := decodeTemplate(t)
		if err != nil {
			return err
		}
		r.templates[t.GetRef()] = template
	}
	for _, p := range part.GetHeld() {
		pod, err := decodePod(p, r.templates)
		if err != nil {
			return err
		}
		r.report.Held = append(r.report.Held, pod)
	}
	return nil
}
