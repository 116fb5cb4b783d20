package status

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/url"
	"regexp"
	"strings"
	"time"

	template "github.com/DataDog/datadog-agent/pkg/template/html"
	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/status/report"
)

// view is a page before it is rendered.
type view struct {
	// Title of the page; the verdict is added to it.
	Title   string
	Verdict report.Verdict
	Groups  []group
	// Section is the path of the navigation entry that the page belongs to.
	Section string
	// Code is the HTTP status; 0 means 200.
	Code int
}

// group is a part of the layout.
type group struct {
	Class     string
	Fragments []fragment
}

// fragment is a part of a page that is updated on its own.
type fragment struct {
	// ID of the element, and name of the template for its content.
	ID   string
	Data any
}

// pages turns views into HTML. Safe for concurrent use.
type pages struct {
	templates *template.Template
	version   string
	// assets changes with every file that pages load.
	assets string
}

func newPages(files fs.FS, version string) (*pages, error) {
	hash := sha256.New()
	names, err := fs.Glob(files, "static/*")
	if err != nil {
		return nil, fmt.Errorf("status pages: %w", err)
	}
	for _, name := range names {
		content, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, fmt.Errorf("status pages: %w", err)
		}
		hash.Write(content)
	}
	templates, err := template.New("pages").Funcs(functions()).ParseFS(files, "templates/*.html")
	if err != nil {
		return nil, fmt.Errorf("status pages: %w", err)
	}
	return &pages{templates: templates, version: version, assets: hex.EncodeToString(hash.Sum(nil)[:6])}, nil
}

// functions are what templates may call; methods they can't, see DESIGN.md.
func functions() template.FuncMap {
	return template.FuncMap{
		"when":      when,
		"clock":     func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") },
		"path":      objectPath,
		"logs":      logsPath,
		"podState":  podState,
		"ready":     report.Ready,
		"nodeLoad":  report.NodeLoad,
		"address":   report.Address,
		"ports":     report.Ports,
		"endpoints": report.Endpoints,
		"modes":     report.Modes,
		"jobTook":   report.JobTook,
		"volume":    volumePath,
		"mounts":    mountPath,
		"phaseWord": phaseWord,
		"beyond":    func(n int, list []string) int { return max(0, len(list)-n) },
		"took":      report.Took,
		"signature": report.Signature,
		"mark":      mark,
		"outcome":   outcomeWord,
		"dict":      dict,
		"zero":      func(v interface{ IsZero() bool }) bool { return v.IsZero() },
		"word":      report.Level.Word,
		"short":     desired.Revision.Short,
		"subject":   desired.Revision.Subject,
		"taint":     func(t corev1.Taint) string { return t.ToString() },
		"pods":      (*report.Workload).AllPods,
		"restarts":  func(p *nodes.PodOverview) int { return p.Status.Restarts() },
	}
}

// when renders an instant as such, so that the same overview gives the same
// text; ages come later, from withAges and from the page's script.
func when(t time.Time) template.HTML {
	if t.IsZero() {
		return "–"
	}
	t = t.UTC()
	text := t.Format("2006-01-02 15:04:05")
	return template.HTML(fmt.Sprintf(`<time datetime="%s" title="%s UTC">%s</time>`, t.Format(time.RFC3339), text, text))
}

// instant matches what when writes; data can't, for its quotes are escaped.
var instant = regexp.MustCompile(`(<time datetime="([^"]+)" title="[^"]*">)[^<]*</time>`)

// withAges replaces instants by how long ago they were, or will be.
func withAges(html template.HTML, now time.Time) template.HTML {
	return template.HTML(instant.ReplaceAllStringFunc(string(html), func(match string) string {
		parts := instant.FindStringSubmatch(match)
		t, err := time.Parse(time.RFC3339, parts[2])
		if err != nil {
			return match
		}
		age := report.Age(t, now)
		if t.After(now) {
			age = report.Age(now, t)
		}
		return parts[1] + age + "</time>"
	}))
}

// objectPath is the address of an object's page.
func objectPath(k desired.Key) string {
	kind, namespace := k.Kind, k.Namespace
	if k.Group != "" {
		kind += "." + k.Group
	}
	if namespace == "" {
		namespace = "-"
	}
	return "/object/" + url.PathEscape(kind) + "/" + url.PathEscape(namespace) + "/" + url.PathEscape(k.Name)
}

// volumePath is the address of a PersistentVolume's page, mountPath that of a
// pod in a claim's namespace.
func volumePath(name string) string {
	if strings.HasPrefix(name, "snapcontent-") {
		return objectPath(desired.Key{Group: "snapshot.storage.k8s.io", Kind: "VolumeSnapshotContent", Name: name})
	}
	return objectPath(desired.Key{Kind: "PersistentVolume", Name: name})
}

func mountPath(claim desired.Key, pod string) string {
	return objectPath(desired.Key{Kind: "Pod", Namespace: claim.Namespace, Name: pod})
}

func logsPath(pod desired.Key, container string) string {
	return "/logs/" + url.PathEscape(pod.Namespace) + "/" + url.PathEscape(pod.Name) + "?container=" + url.QueryEscape(container)
}

// podState gives the word and, below it, the sentence for a pod.
func podState(p *nodes.PodOverview) [2]string {
	word, why := report.PodState(p)
	return [2]string{word, why}
}

// mark is the sign of a state, so that colour is never all there is.
func mark(state any) string {
	switch fmt.Sprint(state) {
	case "healthy", "converged", "Ready", "Complete":
		return "✓"
	case "progressing", "pending":
		return "◐"
	case "degraded", "failed", "rejected", "error", "Failed":
		return "✕"
	case "suspended", "superseded":
		return "–"
	}
	return "!"
}

// phaseWord names the state of a claim or volume in the words of health. One
// that is well and that nothing has is neither good nor bad.
func phaseWord(s *nodes.StorageOverview, h nodes.Health) string {
	if h == nodes.Healthy && s.Phase != "Bound" {
		return "suspended"
	}
	return string(h)
}

// outcomeWord names an outcome in the words of health, for its colour.
func outcomeWord(o nodes.Outcome) string {
	switch o {
	case nodes.OutcomeConverged:
		return "healthy"
	case nodes.OutcomePending:
		return "progressing"
	case nodes.OutcomeSuperseded:
		return "suspended"
	case nodes.OutcomeHeld:
		return "attention"
	}
	return "degraded"
}

// dict hands several values to a template.
func dict(pairs ...any) (map[string]any, error) {
	if len(pairs)%2 != 0 {
		return nil, fmt.Errorf("dict: %d values don't make pairs", len(pairs))
	}
	m := make(map[string]any, len(pairs)/2)
	for i := 0; i < len(pairs); i += 2 {
		name, ok := pairs[i].(string)
		if !ok {
			return nil, fmt.Errorf("dict: %v is no name", pairs[i])
		}
		m[name] = pairs[i+1]
	}
	return m, nil
}

// render executes one template. Whatever the data held, the result has no
// control characters and nothing that turns the reading order.
func (p *pages) render(name string, data any) (template.HTML, error) {
	var b bytes.Buffer
	if err := p.templates.ExecuteTemplate(&b, name, data); err != nil {
		return "", fmt.Errorf("render %s: %w", name, err)
	}
	return template.HTML(report.CleanLines(b.String())), nil
}

// update renders the fragments of a view on their own.
func (p *pages) update(v *view) (*update, error) {
	u := &update{
		Title: v.title(), Level: v.Verdict.Level.Word(), Say: report.Clean(v.Verdict.Short + ": " + v.Verdict.Sentence),
		Fragments: map[string]template.HTML{},
	}
	for _, g := range v.Groups {
		for _, f := range g.Fragments {
			content, err := p.render(f.ID, f.Data)
			if err != nil {
				return nil, err
			}
			u.Fragments[f.ID] = content
			u.Order = append(u.Order, f.ID)
		}
	}
	return u, nil
}

// whole is what the layout needs besides the view.
type whole struct {
	*view
	Groups  []renderedGroup
	Version string
	Assets  string
	// Live is the address of the stream of updates; empty for a page that stays as it is.
	Live, Since string
	Header      string
	Nav         []navigation
}

type renderedGroup struct {
	Class     string
	Fragments []renderedFragment
}

type renderedFragment struct {
	ID      string
	Content template.HTML
}

type navigation struct{ Path, Name string }

// page renders a whole page.
func (p *pages) page(v *view, live *url.URL, since string, now time.Time) (template.HTML, error) {
	w := whole{
		view: v, Version: p.version, Assets: p.assets, Since: since, Header: v.title(),
		Nav: []navigation{{"/", "Overview"}, {"/workloads", "Workloads"}, {"/services", "Services"}, {"/storage", "Storage"}, {"/objects", "Objects"}, {"/history", "History"}},
	}
	if live != nil {
		w.Live = "/live" + strings.TrimSuffix(live.RequestURI(), "?")
	}
	for _, g := range v.Groups {
		rendered := renderedGroup{Class: g.Class}
		for _, f := range g.Fragments {
			content, err := p.render(f.ID, f.Data)
			if err != nil {
				return "", err
			}
			rendered.Fragments = append(rendered.Fragments, renderedFragment{f.ID, content})
		}
		w.Groups = append(w.Groups, rendered)
	}
	content, err := p.render("layout", w)
	return withAges(content, now), err
}

// title is what the browser's tab shows: the state first.
func (v *view) title() string {
	return report.Clean(mark(v.Verdict.Level.Word()) + " " + v.Verdict.Short + " · " + v.Title)
}
