package status

import (
	"cmp"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/status/report"
)

// What the overview shows of long lists; their own pages show all.
const (
	overviewWorkloads = 30
	overviewServices  = 30
	overviewProblems  = 20
	overviewHistory   = 8
	overviewUnwell    = 20
	overviewClaims    = 20
	overviewLoose     = 5
	// perPage is the length of one page of a long list, workloadsPerPage that
	// of workloads, which are larger.
	perPage          = 100
	workloadsPerPage = 50
)

// pageFunc says what a page shows of an overview.
type pageFunc func(o *nodes.Overview, r *http.Request) *view

// page serves a page as a whole.
func (s *Server) page(page pageFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		o := s.cluster.Overview()
		s.write(w, page(o, r), r.URL, s.renderings.id(o))
	}
}

func (s *Server) write(w http.ResponseWriter, v *view, live *url.URL, since string) {
	content, err := s.pages.page(v, live, since, time.Now())
	if err != nil {
		s.log.Error("page not rendered", "title", v.Title, "error", err)
		plain(w, http.StatusInternalServerError, "this page can't be shown; the server's log says why\n")
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(cmp.Or(v.Code, http.StatusOK))
	_, _ = w.Write([]byte(content))
}

// strip is what pages about one thing begin with: the state of the whole, in a
// line.
func strip(o *nodes.Overview, title string) group {
	return group{Class: "head", Fragments: []fragment{{"strip", struct {
		report.Verdict
		Title string
	}{report.Judge(o), title}}}}
}

// head is what the overview begins with.
func head(o *nodes.Overview) group {
	return group{Class: "head", Fragments: []fragment{
		{"verdict", struct {
			report.Verdict
			Counts report.Counts
			O      *nodes.Overview
		}{report.Judge(o), report.Count(o), o}},
		{"alerts", o},
	}}
}

func (s *Server) index(o *nodes.Overview, r *http.Request) *view {
	workloads := report.Workloads(o)
	return &view{
		Title: "Tallyman", Section: "/", Verdict: report.Judge(o),
		Groups: []group{
			head(o),
			{Class: "now", Fragments: []fragment{{"revision", o}, {"plan", o.Plan}}},
			{Class: "runs", Fragments: []fragment{
				{"workloads", workloadList{namespaces(workloads, overviewWorkloads), len(workloads), pager{Total: len(workloads), Shown: min(len(workloads), overviewWorkloads), More: "/workloads"}}},
				{"autoscalers", report.Autoscalers(o)},
				{"services", serviceList{firstN(o.Services, overviewServices), pager{Total: len(o.Services), Shown: min(len(o.Services), overviewServices), More: "/services"}}},
				{"storage", storageOn(o)},
				{"kinds", kindsOf(o)},
			}},
			{Class: "past", Fragments: []fragment{
				{"history", historyList{firstN(o.History, overviewHistory), pager{Total: len(o.History), Shown: min(len(o.History), overviewHistory), More: "/history"}}},
				{"nodes", o.Nodes},
				{"notes", problemList{firstN(o.Problems, overviewProblems), pager{Total: len(o.Problems), Shown: min(len(o.Problems), overviewProblems), More: revisionPath(o.InForce)}}},
			}},
		},
	}
}

func firstN[T any](list []T, n int) []T { return list[:min(n, len(list))] }

func revisionPath(r *desired.Revision) string {
	if r == nil {
		return "/history"
	}
	return "/revision/" + url.PathEscape(r.SHA)
}

// pager is a part of a long list.
type pager struct {
	Total, Shown int
	// More leads to the whole list; empty on its own pages.
	More string
	// Page counts from 1; Previous and Next are addresses or empty.
	Page, Pages    int
	Previous, Next string
}

// paged cuts the page of size items out of list that the request asks for.
func paged[T any](list []T, size int, r *http.Request) ([]T, pager) {
	p := pager{Total: len(list), Pages: max(1, (len(list)+size-1)/size), Page: 1}
	if n, err := strconv.Atoi(r.URL.Query().Get("page")); err == nil {
		p.Page = min(max(1, n), p.Pages)
	}
	address := func(page int) string {
		q := r.URL.Query()
		q.Del("since")
		q.Set("page", strconv.Itoa(page))
		return strings.TrimPrefix(r.URL.Path, "/live") + "?" + q.Encode()
	}
	if p.Page > 1 {
		p.Previous = address(p.Page - 1)
	}
	if p.Page < p.Pages {
		p.Next = address(p.Page + 1)
	}
	list = list[(p.Page-1)*size : min(p.Page*size, len(list))]
	p.Shown = len(list)
	return list, p
}

type workloadList struct {
	Namespaces []namespaceList
	Total      int
	Pager      pager
}

// namespaceList are the workloads of one namespace, or, under the empty name,
// those of all that need a human.
type namespaceList struct {
	Name      string
	Workloads []*report.Workload
}

// namespaces arranges the first n workloads: those that are not healthy first,
// then by namespace.
func namespaces(workloads []*report.Workload, n int) []namespaceList {
	var lists []namespaceList
	for _, w := range firstN(workloads, n) {
		name := ""
		if w.Health == nodes.Healthy || w.Health == nodes.Suspended {
			name = cmp.Or(w.Key.Namespace, "cluster")
		}
		i := slices.IndexFunc(lists, func(l namespaceList) bool { return l.Name == name })
		if i < 0 {
			i = len(lists)
			lists = append(lists, namespaceList{Name: name})
		}
		lists[i].Workloads = append(lists[i].Workloads, w)
	}
	return lists
}

func (s *Server) workloads(o *nodes.Overview, r *http.Request) *view {
	all := report.Workloads(o)
	part, p := paged(all, workloadsPerPage, r)
	return list(o, "Workloads", "/workloads", fragment{"workloads", workloadList{namespaces(part, len(part)), len(all), p}}, fragment{"autoscalers", report.Autoscalers(o)})
}

// storageList are claims, and volumes that no claim has.
type storageList struct {
	Claims, Snapshots, Loose []*nodes.ObjectHealth
	Pager                    pager
	// Taken counts the snapshots, Unclaimed the volumes that no claim has.
	Taken, Unclaimed int
	// Whole is set on the page that is about nothing else.
	Whole bool
}

// storageOn is the overview's part: what needs a human, what ends soonest, and
// some of the rest.
func storageOn(o *nodes.Overview) storageList {
	s := report.StorageOf(o)
	shown := firstN(s.Claims, overviewClaims)
	return storageList{
		Claims: shown, Snapshots: firstN(s.Snapshots, overviewLoose), Loose: firstN(s.Loose, overviewLoose),
		Taken: len(s.Snapshots), Unclaimed: len(s.Loose),
		Pager: pager{Total: len(s.Claims), Shown: len(shown), More: "/storage"},
	}
}

func (s *Server) storage(o *nodes.Overview, r *http.Request) *view {
	all := report.StorageOf(o)
	part, p := paged(slices.Concat(all.Claims, all.Snapshots, all.Loose), perPage, r)
	l := storageList{Pager: p, Taken: len(all.Snapshots), Unclaimed: len(all.Loose), Whole: true}
	l.Pager.Total = len(all.Claims)
	begin := (p.Page - 1) * perPage
	claims := min(len(part), max(0, len(all.Claims)-begin))
	snapshots := min(len(part), max(0, len(all.Claims)+len(all.Snapshots)-begin))
	l.Claims, l.Snapshots, l.Loose = part[:claims], part[claims:snapshots], part[snapshots:]
	return list(o, "Storage", "/storage", fragment{"storage", l})
}

type serviceList struct {
	Services []nodes.ServiceOverview
	Pager    pager
}

func (s *Server) services(o *nodes.Overview, r *http.Request) *view {
	part, p := paged(o.Services, perPage, r)
	return list(o, "Services", "/services", fragment{"services", serviceList{part, p}})
}

type historyList struct {
	Entries []nodes.HistoryEntry
	Pager   pager
}

func (s *Server) history(o *nodes.Overview, r *http.Request) *view {
	part, p := paged(o.History, perPage, r)
	return list(o, "History", "/history", fragment{"history", historyList{part, p}})
}

type problemList struct {
	Problems []desired.Problem
	Pager    pager
}

// list is a page with one long list.
func list(o *nodes.Overview, title, section string, fragments ...fragment) *view {
	return &view{
		Title: title + " · Tallyman", Section: section, Verdict: report.Judge(o),
		Groups: []group{strip(o, title), {Class: "single", Fragments: fragments}},
	}
}

// kindCount sums up the objects of one kind.
type kindCount struct {
	Kind          string
	Total, Unwell int
}

type kindList struct {
	Kinds []kindCount
	// Unwell are objects that nothing else on the page shows.
	Unwell []*nodes.ObjectHealth
	More   int
}

func kindsOf(o *nodes.Overview) kindList {
	counts := map[string]*kindCount{}
	for i := range o.Objects {
		object := &o.Objects[i]
		if !object.Owner.IsZero() && object.Owner != object.Key {
			continue
		}
		c := counts[object.Key.Kind]
		if c == nil {
			c = &kindCount{Kind: object.Key.Kind}
			counts[object.Key.Kind] = c
		}
		c.Total++
		if unwell(object) {
			c.Unwell++
		}
	}
	var l kindList
	for _, c := range counts {
		l.Kinds = append(l.Kinds, *c)
	}
	slices.SortFunc(l.Kinds, func(a, b kindCount) int { return strings.Compare(a.Kind, b.Kind) })
	for i := range o.Objects {
		if object := &o.Objects[i]; unwell(object) && !report.Listed(object) {
			l.Unwell = append(l.Unwell, object)
		}
	}
	l.More = max(0, len(l.Unwell)-overviewUnwell)
	l.Unwell = firstN(l.Unwell, overviewUnwell)
	return l
}

func unwell(o *nodes.ObjectHealth) bool {
	return o.Health != nodes.Healthy && o.Health != nodes.Suspended
}
