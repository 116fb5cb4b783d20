package report

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
)

const (
	kindClaim    = "PersistentVolumeClaim"
	kindSnapshot = "VolumeSnapshot"
)

// Listed reports whether an object that is not healthy shows in a table of its
// kind, and need not be listed apart. A volume that a claim has does not.
func Listed(o *nodes.ObjectHealth) bool {
	return Runs(o.Key.Kind) || o.Autoscaler != nil || o.Storage != nil && (o.Key.Kind == kindClaim || o.Key.Kind == kindSnapshot || o.Storage.Phase != "Bound")
}

// Storage is what the cluster keeps of data.
type Storage struct {
	// Claims, those that need a human first.
	Claims []*nodes.ObjectHealth
	// Snapshots, those that need a human first.
	Snapshots []*nodes.ObjectHealth
	// Loose are the volumes and the snapshots' data that nothing has, those that
	// end first first.
	Loose []*nodes.ObjectHealth
}

// StorageOf lists claims, and the volumes that none of them has.
func StorageOf(o *nodes.Overview) Storage {
	var s Storage
	for i := range o.Objects {
		switch object := &o.Objects[i]; {
		case object.Storage == nil:
		case object.Key.Kind == kindClaim:
			s.Claims = append(s.Claims, object)
		case object.Key.Kind == kindSnapshot:
			s.Snapshots = append(s.Snapshots, object)
		case object.Storage.Phase != "Bound":
			s.Loose = append(s.Loose, object)
		}
	}
	slices.SortStableFunc(s.Claims, worstFirst)
	slices.SortStableFunc(s.Snapshots, worstFirst)
	slices.SortStableFunc(s.Loose, func(a, b *nodes.ObjectHealth) int {
		return cmp.Or(cmp.Compare(rank(a.Health), rank(b.Health)), soonest(a.Storage.Until, b.Storage.Until), a.Key.Compare(b.Key))
	})
	return s
}

// soonest orders instants; zero, which is never, comes last.
func soonest(a, b time.Time) int {
	switch {
	case a.IsZero() && b.IsZero():
		return 0
	case a.IsZero():
		return 1
	case b.IsZero():
		return -1
	}
	return a.Compare(b)
}

// Modes gives access modes in Kubernetes' short form: "RWO, RWX".
func Modes(s *nodes.StorageOverview) string {
	short := map[string]string{"ReadWriteOnce": "RWO", "ReadOnlyMany": "ROX", "ReadWriteMany": "RWX", "ReadWriteOncePod": "RWOP"}
	list := make([]string, len(s.AccessModes))
	for i, m := range s.AccessModes {
		list[i] = cmp.Or(short[m], Clean(m))
	}
	return cmp.Or(strings.Join(list, ", "), "–")
}

// Autoscalers lists them, those that need a human first.
func Autoscalers(o *nodes.Overview) []*nodes.ObjectHealth {
	var list []*nodes.ObjectHealth
	for i := range o.Objects {
		if object := &o.Objects[i]; object.Autoscaler != nil {
			list = append(list, object)
		}
	}
	slices.SortStableFunc(list, worstFirst)
	return list
}

// Metric gives "cpu 45% of 70%".
func Metric(m nodes.MetricOverview) string {
	return fmt.Sprintf("%s %s of %s", Clean(m.Name), cmp.Or(Clean(m.Current), "unknown"), Clean(m.Target))
}

func claimTable(w io.Writer, claims []*nodes.ObjectHealth) {
	fmt.Fprintln(w, "CLAIM\tPHASE\tVOLUME\tSIZE\tCLASS\tNODE\tMOUNTED BY\tHEALTH")
	for _, c := range claims {
		s := c.Storage
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", Clean(c.Key.Namespace+"/"+c.Key.Name), s.Phase, dash(s.Volume), size(s), dash(s.Class), dash(s.Node), mounted(s), health(c))
	}
}

func dash(s string) string { return cmp.Or(Clean(s), "–") }

func size(s *nodes.StorageOverview) string {
	if s.Unenforced != "" && s.Capacity != "" {
		return Clean(s.Capacity) + " (not enforced)"
	}
	return dash(s.Capacity)
}

// mounted names the pods that mount a claim, or counts them.
func mounted(s *nodes.StorageOverview) string {
	if len(s.Pods) > 2 {
		return count(len(s.Pods), "pod")
	}
	return dash(strings.Join(s.Pods, ", "))
}

func snapshotTable(w io.Writer, list []*nodes.ObjectHealth, now time.Time) {
	fmt.Fprintln(w, "SNAPSHOT\tPHASE\tSIZE\tNODE\tAGE\tHEALTH")
	for _, object := range list {
		s := object.Storage
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", Clean(object.Key.Namespace+"/"+object.Key.Name), s.Phase, size(s), dash(s.Node), Age(object.Created, now), health(object))
	}
}

func looseTable(w io.Writer, volumes []*nodes.ObjectHealth, now time.Time) {
	fmt.Fprintln(w, "VOLUME WITHOUT A CLAIM\tPHASE\tSIZE\tNODE\tWAS\tDELETED IN\tHEALTH")
	for _, v := range volumes {
		s := v.Storage
		was, end := "–", "never"
		if !s.Claim.IsZero() {
			was = Clean(s.Claim.Namespace + "/" + s.Claim.Name)
		}
		if !s.Until.IsZero() {
			end = Age(now, s.Until)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", Clean(v.Key.Name), s.Phase, size(s), dash(s.Node), was, end, health(v))
	}
}

func autoscalerTable(w io.Writer, list []*nodes.ObjectHealth, now time.Time) {
	fmt.Fprintln(w, "AUTOSCALER\tOF\tREPLICAS\tMETRICS\tLAST SCALED\tHEALTH")
	for _, object := range list {
		a := object.Autoscaler
		var metrics []string
		for _, m := range a.Metrics {
			metrics = append(metrics, Metric(m))
		}
		fmt.Fprintf(w, "%s\t%s\t%d (%d to %d)\t%s\t%s\t%s\n", Clean(object.Key.Namespace+"/"+object.Key.Name),
			Clean(a.Target.Kind+" "+a.Target.Name), a.Replicas, a.Min, a.Max, cmp.Or(strings.Join(metrics, ", "), "–"), Age(a.Scaled, now), health(object))
	}
}
