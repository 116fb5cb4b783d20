package status

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/status/report"
)

// objectList is one page of objects, with the filter that it went through.
type objectList struct {
	Objects []*nodes.ObjectHealth
	Kind    string
	Kinds   []kindCount
	Pager   pager
}

// objects lists all that the revision in force has, or one kind of it (?kind=).
func (s *Server) objects(o *nodes.Overview, r *http.Request) *view {
	kind := r.URL.Query().Get("kind")
	var objects []*nodes.ObjectHealth
	for i := range o.Objects {
		object := &o.Objects[i]
		if (kind == "" || object.Key.Kind == kind) && (object.Owner.IsZero() || object.Owner == object.Key) {
			objects = append(objects, object)
		}
	}
	slices.SortStableFunc(objects, func(a, b *nodes.ObjectHealth) int {
		return cmp.Or(boolCompare(unwell(b), unwell(a)), a.Key.Compare(b.Key))
	})
	part, p := paged(objects, perPage, r)
	return list(o, "Objects", "/objects", fragment{"objects", objectList{part, kind, kindsOf(o).Kinds, p}})
}

func boolCompare(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// objectDetail is all that is known of one object.
type objectDetail struct {
	*nodes.ObjectHealth
	// Workload is set for what runs pods.
	Workload *report.Workload
	Service  *nodes.ServiceOverview
	Events   []nodes.Event
	// Containers of a pod, init containers first.
	Containers []containerDetail
	Problems   []desired.Problem
	SHA        string
}

type containerDetail struct {
	nodes.ContainerStatus
	Init bool
}

func (s *Server) object(o *nodes.Overview, r *http.Request) *view {
	kind, group, _ := strings.Cut(r.PathValue("kind"), ".")
	key := desired.Key{Kind: kind, Group: group, Namespace: r.PathValue("namespace"), Name: r.PathValue("name")}
	if key.Namespace == "-" {
		key.Namespace = ""
	}
	i := slices.IndexFunc(o.Objects, func(object nodes.ObjectHealth) bool { return object.Key == key })
	events := s.cluster.Events(key)
	if i < 0 {
		return s.missing(o, key, events)
	}
	d := objectDetail{ObjectHealth: &o.Objects[i], Events: latestFirst(events), SHA: sha(o)}
	if report.Runs(kind) && kind != "Pod" {
		d.Workload = workloadOf(o, d.ObjectHealth)
	}
	if d.Pod != nil {
		for _, c := range d.Pod.Status.Init {
			d.Containers = append(d.Containers, containerDetail{c, true})
		}
		for _, c := range d.Pod.Status.Containers {
			d.Containers = append(d.Containers, containerDetail{c, false})
		}
	}
	for i := range o.Services {
		if o.Services[i].Key == key {
			d.Service = &o.Services[i]
		}
	}
	for _, p := range o.Problems {
		if d.From.File != "" && p.File == d.From.File && p.Document == d.From.Document {
			d.Problems = append(d.Problems, p)
		}
	}
	return list(o, key.String(), "", fragment{"object", d})
}

// missing is the page of an object that is not there, or no more.
func (s *Server) missing(o *nodes.Overview, key desired.Key, events []nodes.Event) *view {
	v := list(o, key.String(), "", fragment{"missing", struct {
		What   string
		Events []nodes.Event
	}{fmt.Sprintf("%v is not part of what runs now.", key), latestFirst(events)}})
	v.Code = http.StatusNotFound
	return v
}

func sha(o *nodes.Overview) string {
	if o.InForce == nil {
		return ""
	}
	return o.InForce.SHA
}

func latestFirst(events []nodes.Event) []nodes.Event {
	events = slices.Clone(events)
	slices.SortStableFunc(events, func(a, b nodes.Event) int { return b.Last.Compare(a.Last) })
	return events
}

// workloadOf finds the tree below an object; a ReplicaSet that Tallyman made
// becomes a tree of its own.
func workloadOf(o *nodes.Overview, object *nodes.ObjectHealth) *report.Workload {
	for _, w := range report.Workloads(o) {
		if w.Key == object.Key {
			return w
		}
		for _, set := range w.Sets {
			if set.Key == object.Key {
				return &report.Workload{ObjectHealth: object, Pods: set.Pods}
			}
		}
	}
	return nil
}

// revisionDetail is one revision that was seen.
type revisionDetail struct {
	desired.Revision
	Entry    *nodes.HistoryEntry
	InForce  bool
	Problems []desired.Problem
}

func (s *Server) revision(o *nodes.Overview, r *http.Request) *view {
	sha := r.PathValue("sha")
	var d revisionDetail
	for i := range o.History {
		if o.History[i].Revision.SHA == sha {
			d.Revision, d.Entry = o.History[i].Revision, &o.History[i]
			break
		}
	}
	if o.Rejected != nil && o.Rejected.Revision.SHA == sha {
		d.Revision, d.Problems = o.Rejected.Revision, o.Rejected.Problems
	}
	if o.Held != nil && o.Held.Revision.SHA == sha {
		d.Revision = o.Held.Revision
	}
	if o.InForce != nil && o.InForce.SHA == sha {
		d.Revision, d.Problems, d.InForce = *o.InForce, o.Problems, true
	}
	if d.SHA == "" {
		v := list(o, "Revision", "", fragment{"missing", struct {
			What   string
			Events []nodes.Event
		}{"Revision " + sha + " was never seen here, or long ago.", nil}})
		v.Code = http.StatusNotFound
		return v
	}
	return list(o, "Revision "+d.Short(), "/history", fragment{"commit", d})
}

func (s *Server) notFound(w http.ResponseWriter, r *http.Request) {
	o := s.cluster.Overview()
	v := list(o, "Not found", "", fragment{"missing", struct {
		What   string
		Events []nodes.Event
	}{"There is no page at this address.", nil}})
	v.Code = http.StatusNotFound
	s.write(w, v, nil, "")
}
