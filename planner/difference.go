package planner

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	storagev1 "k8s.io/api/storage/v1"

	"github.com/tallyman-dev/tallyman/desired"
)

// maxFields is how many changed fields of one object are shown.
const maxFields = 20

// hidden stands for the values of Secrets.
const hidden = "(hidden)"

// difference is what a revision changes against what is in force.
func (st *step) difference(c *comparison) []Difference {
	var out []Difference
	scaled := autoscalersIn(c.next)
	for _, k := range c.changed {
		o := c.next.Get(k)
		switch {
		case o == nil:
			out = append(out, st.deletion(c, k))
		case !c.had(k):
			out = append(out, Difference{Op: Create, Object: k, From: o.From, Reason: summary(o)})
		case c.old != nil:
			out = append(out, st.update(c.old.Get(k), o, scaled[k]))
		case c.inventory[k] != st.mark(o):
			out = append(out, Difference{Op: Update, Object: k, From: o.From, Reason: "changed since the revision in force was recorded"})
		}
	}
	return out
}

func (st *step) deletion(c *comparison, k desired.Key) Difference {
	d := Difference{Op: Delete, Object: k, Reason: "no longer in Git"}
	if st.snapshot != nil {
		d.From = st.snapshot.Get(k).From
	}
	if why := st.dataAfter(c, k); why != "" {
		d.Reason += ", " + why
	}
	if g, ok := st.groups.Get(k); ok && len(g.pods) > 0 {
		d.Reason += ", " + count(len(g.pods), "pod") + " to stop"
	}
	if made := st.madeBy(k); len(made) > 0 {
		d.Reason += ", " + count(len(made), "Job") + " of its go with it"
	}
	if sc, ok := st.scalers.Get(k); ok {
		d.Reason += ", " + sc.target.String() + " has as many replicas as Git says again"
	}
	return d
}

// summary says in a few words what a new object is.
func summary(o *desired.Object) string {
	if k, ok := kinds[schemaKind{o.Key.Group, o.Key.Kind}]; ok {
		return k.summary(o)
	}
	switch v := o.Value.(type) {
	case *autoscalingv2.HorizontalPodAutoscaler:
		return autoscalerSummary(v)
	case *corev1.Service:
		return "service of type " + string(v.Spec.Type)
	case *corev1.ConfigMap:
		return count(len(v.Data)+len(v.BinaryData), "key")
	case *corev1.Secret:
		return string(v.Type) + ", " + count(len(v.Data)+len(v.StringData), "key")
	case *corev1.PersistentVolumeClaim:
		size := v.Spec.Resources.Requests[corev1.ResourceStorage]
		return "claim for " + size.String()
	case *corev1.PersistentVolume:
		size := v.Spec.Capacity[corev1.ResourceStorage]
		return "volume of " + size.String()
	case *storagev1.StorageClass:
		return "provisioner " + v.Provisioner
	case *nodev1.RuntimeClass:
		return "handler " + v.Handler
	default:
		return "new in Git"
	}
}

// update describes a changed object: what pods will do about it, and which
// fields differ.
func (st *step) update(old, new, autoscaler *desired.Object) Difference {
	note := ""
	if autoscaler != nil {
		old, new, note = st.scaledDifference(old, new, autoscaler)
	}
	d := Difference{Op: Update, Object: new.Key, From: new.From, Fields: fieldDifferences(old, new)}
	if k, ok := kinds[schemaKind{new.Key.Group, new.Key.Kind}]; ok {
		d.Op, d.Reason = k.change(old, new)
		if note != "" {
			d.Reason += "; " + note
		}
		return d
	}
	switch new.Value.(type) {
	case *corev1.ConfigMap:
		was, _ := old.Value.(*corev1.ConfigMap)
		d.Op = replaceIf(was.Immutable)
		d.Reason = st.configChange(new.Key)
	case *corev1.Secret:
		was, _ := old.Value.(*corev1.Secret)
		d.Op = replaceIf(was.Immutable)
		d.Reason = st.configChange(new.Key)
	case *nodev1.RuntimeClass:
		d.Op, d.Reason = st.classChange(old, new)
	default:
		d.Reason = "changed"
	}
	return d
}

// classChange says which workloads roll because their RuntimeClass has another
// handler. Kubernetes holds it immutable: the class is as if made anew.
func (st *step) classChange(old, new *desired.Object) (Op, string) {
	was, _ := old.Value.(*nodev1.RuntimeClass)
	is, _ := new.Value.(*nodev1.RuntimeClass)
	if was.Handler == is.Handler {
		return Update, "changed"
	}
	var rolls []string
	for _, g := range entries(st.groups) {
		if g.object == nil || g.current == nil || runtimeClass(&g.current.template.Spec) != new.Key.Name {
			continue
		}
		if w, ok := st.wantedOf(g.object); ok && !w.podTemplate.steady {
			rolls = append(rolls, g.key.String())
		}
	}
	if len(rolls) == 0 {
		return Replace, "no workload rolls"
	}
	return Replace, "pods roll that run by it: " + strings.Join(rolls, ", ")
}

func replaceIf(immutable *bool) Op {
	if immutable != nil && *immutable {
		return Replace
	}
	return Update
}

// configChange says which workloads roll because they keep the content, and
// which have their files updated.
func (st *step) configChange(k desired.Key) string {
	var rolls, files []string
	for _, g := range entries(st.groups) {
		if g.object == nil || g.current == nil || !slices.Contains(g.current.refs, k) {
			continue
		}
		w, ok := st.wantedOf(g.object)
		switch {
		case ok && !w.steady && reads(w.spec, k):
			rolls = append(rolls, g.key.String())
		default:
			files = append(files, g.key.String())
		}
	}
	var parts []string
	if len(rolls) > 0 {
		parts = append(parts, "pods roll that read it as environment or subPath: "+strings.Join(rolls, ", "))
	}
	if len(files) > 0 {
		parts = append(parts, "files are updated in place: "+strings.Join(files, ", "))
	}
	if len(parts) == 0 {
		return "no workload reads it"
	}
	return strings.Join(parts, "; ")
}

// fieldDifferences compares two objects field by field.
func fieldDifferences(old, new *desired.Object) []FieldDifference {
	a, b := tree(old), tree(new)
	var out []FieldDifference
	compareTrees("", a, b, &out)
	secret := new.Key.Kind == kindSecret
	for i := range out {
		if secret && confidential(out[i].Path) {
			out[i].Old, out[i].New = conceal(out[i].Old), conceal(out[i].New)
		}
	}
	if more := len(out) - maxFields; more > 0 {
		out = append(out[:maxFields], FieldDifference{Path: fmt.Sprintf("… and %s more", count(more, "field"))})
	}
	return out
}

// confidential reports whether a field of a Secret may hold its values. Tools
// leave copies of them in annotations (kubectl.kubernetes.io/last-applied-configuration).
func confidential(path string) bool {
	if strings.HasPrefix(path, "metadata.annotations") {
		return true
	}
	return !strings.HasPrefix(path, "metadata.") && path != "type"
}

func conceal(s string) string {
	if s == "" {
		return ""
	}
	return hidden
}

// tree is an object as JSON values, without what only an API server fills in.
func tree(o *desired.Object) any {
	b, err := json.Marshal(o.Value)
	if err != nil {
		return nil
	}
	var v map[string]any
	if json.Unmarshal(b, &v) != nil {
		return nil
	}
	delete(v, "status")
	if meta, ok := v["metadata"].(map[string]any); ok {
		delete(meta, "creationTimestamp")
	}
	return v
}

func compareTrees(path string, a, b any, out *[]FieldDifference) {
	if reflect.DeepEqual(a, b) {
		return
	}
	am, aok := a.(map[string]any)
	bm, bok := b.(map[string]any)
	if aok && bok {
		names := slices.Sorted(maps.Keys(am))
		for k := range bm {
			if _, both := am[k]; !both {
				names = append(names, k)
			}
		}
		slices.Sort(names)
		for _, k := range names {
			compareTrees(strings.TrimPrefix(path+"."+k, "."), am[k], bm[k], out)
		}
		return
	}
	al, aok := a.([]any)
	bl, bok := b.([]any)
	if aok && bok {
		compareLists(path, al, bl, out)
		return
	}
	*out = append(*out, FieldDifference{Path: path, Old: render(a), New: render(b)})
}

// compareLists pairs elements by name where they have one, else by position.
func compareLists(path string, a, b []any, out *[]FieldDifference) {
	left, right := byName(a), byName(b)
	for i, name := range left.names {
		compareTrees(path+"["+name+"]", a[i], right.values[name], out)
	}
	for i, name := range right.names {
		if _, both := left.values[name]; !both {
			compareTrees(path+"["+name+"]", nil, b[i], out)
		}
	}
}

type named struct {
	names  []string
	values map[string]any
}

func byName(list []any) named {
	n := named{values: map[string]any{}}
	for i, v := range list {
		name := strconv.Itoa(i)
		if m, ok := v.(map[string]any); ok {
			if s, ok := m["name"].(string); ok {
				if _, twice := n.values[s]; !twice {
					name = s
				}
			}
		}
		n.names = append(n.names, name)
		n.values[name] = v
	}
	return n
}

// render shows a value in at most a line.
func render(v any) string {
	if v == nil {
		return ""
	}
	text, ok := v.(string)
	if !ok {
		b, err := json.Marshal(v)
		if err != nil {
			return ""
		}
		text = string(b)
	}
	text = strings.ReplaceAll(text, "\n", "⏎")
	if runes := []rune(text); len(runes) > 120 {
		text = string(runes[:119]) + "…"
	}
	return text
}
