package report

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// Status is what `tally status` prints: what runs against what should.
func Status(o *nodes.Overview, now time.Time) string {
	var b strings.Builder
	verdict := Judge(o)
	fmt.Fprintf(&b, "%s: %s\n\n", verdict.Short, verdict.Sentence)
	table(&b, func(w io.Writer) { head(w, o, now) })
	rejection(&b, o.Rejected)
	hold(&b, o.Held)
	if workloads := Workloads(o); len(workloads) > 0 {
		b.WriteString("\n")
		table(&b, func(w io.Writer) { workloadTable(w, workloads, now) })
	}
	if list := Autoscalers(o); len(list) > 0 {
		b.WriteString("\n")
		table(&b, func(w io.Writer) { autoscalerTable(w, list, now) })
	}
	if len(o.Services) > 0 {
		b.WriteString("\n")
		table(&b, func(w io.Writer) { serviceTable(w, o.Services) })
	}
	stored(&b, StorageOf(o), now)
	unwell(&b, o)
	section(&b, "waiting", o.Plan.Waiting, func(item nodes.WaitingItem) string {
		line := Clean(item.Object.String() + ": " + item.Reason)
		if left := item.Deadline.Sub(now); left > 0 {
			line += " (for another " + Duration(left) + " at most)"
		}
		return line
	})
	section(&b, "warnings and notes", desired.Fold(o.Problems), func(p desired.Problem) string {
		return string(p.Severity) + ": " + Clean(p.String())
	})
	return b.String()
}

func stored(b *strings.Builder, s Storage, now time.Time) {
	if len(s.Claims) > 0 {
		b.WriteString("\n")
		table(b, func(w io.Writer) { claimTable(w, s.Claims) })
	}
	if len(s.Snapshots) > 0 {
		b.WriteString("\n")
		table(b, func(w io.Writer) { snapshotTable(w, s.Snapshots, now) })
	}
	if len(s.Loose) > 0 {
		b.WriteString("\n")
		table(b, func(w io.Writer) { looseTable(w, s.Loose, now) })
	}
}

// History is what `tally history` prints: revisions, the newest first.
func History(entries []nodes.HistoryEntry, now time.Time) string {
	if len(entries) == 0 {
		return "no revision was seen yet\n"
	}
	var b strings.Builder
	table(&b, func(w io.Writer) {
		fmt.Fprintln(w, "REVISION\tOUTCOME\tTOOK\tAGE\tAUTHOR\tMESSAGE")
		for _, h := range entries {
			message := Clean(h.Revision.Subject())
			if h.Message != "" {
				message += " (" + Clean(h.Message) + ")"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", Clean(h.Revision.Short()), h.Outcome, Took(h), Age(h.Seen, now), Clean(h.Revision.Author), message)
		}
	})
	return b.String()
}

// table aligns the columns that fill separates by tabs.
func table(b *strings.Builder, fill func(w io.Writer)) {
	w := tabwriter.NewWriter(b, 0, 8, 2, ' ', 0)
	fill(w)
	// A strings.Builder takes everything.
	_ = w.Flush()
}

func head(w io.Writer, o *nodes.Overview, now time.Time) {
	if r := o.InForce; r != nil {
		fmt.Fprintf(w, "revision\t%s %s (%s, %s ago, %s)\n", Clean(r.Short()), Clean(r.Subject()), Clean(r.Author), Age(r.Time, now), Signature(*r))
		fmt.Fprintf(w, "outcome\t%s\n", o.Outcome)
	}
	sync := Clean(o.Sync.State)
	if o.Sync.Message != "" {
		sync += ": " + Clean(o.Sync.Message)
	}
	asked := "not asked yet"
	if !o.Sync.Fetched.IsZero() {
		asked = "asked " + Age(o.Sync.Fetched, now) + " ago"
	}
	fmt.Fprintf(w, "sync\t%s (%s, %s, %s)\n", sync, Clean(o.Sync.Repo), Clean(o.Sync.Branch), asked)
	for _, n := range o.Nodes {
		state := "ready"
		if !n.Ready {
			state = "not ready: " + Clean(n.Reason)
		}
		fmt.Fprintf(w, "node\t%s %s (%s), %s\n", Clean(n.Name), state, Age(n.Since, now), NodeLoad(n))
		for _, note := range n.Notes {
			fmt.Fprintf(w, "\t  %s\n", Clean(note))
		}
	}
}

// NodeLoad is what runs on a node, against what it may take.
func NodeLoad(n nodes.NodeOverview) string {
	cpu, memory := n.Allocatable[corev1.ResourceCPU], n.Allocatable[corev1.ResourceMemory]
	used := resource.NewMilliQuantity(n.RequestedCPU, resource.DecimalSI)
	held := resource.NewQuantity(n.RequestedMemory, resource.BinarySI)
	return fmt.Sprintf("%s request %s of %s cpu, %s of %s memory", count(n.Pods, "pod"), used, cpu.String(), held, memory.String())
}

func rejection(b *strings.Builder, r *nodes.Rejection) {
	if r == nil {
		return
	}
	fmt.Fprintf(b, "\nrejected: %s %s\n", Clean(r.Revision.Short()), Clean(r.Revision.Subject()))
	for _, p := range r.Problems {
		fmt.Fprintf(b, "  %s: %s\n", p.Severity, Clean(p.String()))
	}
}

func hold(b *strings.Builder, h *nodes.Hold) {
	if h == nil {
		return
	}
	fmt.Fprintf(b, "\nheld: %s %s\n  %s\n", Clean(h.Revision.Short()), Clean(h.Revision.Subject()), Clean(h.Why))
	const most = 20
	for i, key := range h.Deletes {
		if i == most {
			fmt.Fprintf(b, "  … and %d more\n", len(h.Deletes)-most)
			break
		}
		fmt.Fprintf(b, "  would delete %s\n", Clean(key.String()))
	}
	fmt.Fprintf(b, "  to confirm, push a commit with the line: %s\n", Clean(h.Confirm))
}

func workloadTable(w io.Writer, workloads []*Workload, now time.Time) {
	fmt.Fprintln(w, "WORKLOAD\tREADY\tRESTARTS\tAGE\tHEALTH")
	for _, load := range workloads {
		restarts := 0
		pods := load.AllPods()
		for _, p := range pods {
			if p.Pod != nil {
				restarts += p.Pod.Status.Restarts()
			}
		}
		state := health(load.ObjectHealth)
		if text := timing(load, now); text != "" {
			state += " (" + text + ")"
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\n", Clean(load.Key.String()), Ready(load), restarts, Age(load.Created, now), state)
		for _, p := range pods {
			if p.Health == nodes.Healthy || p.Pod == nil || p.Key == load.Key {
				continue
			}
			word, _ := PodState(p.Pod)
			fmt.Fprintf(w, "  %s\t%s\t%d\t%s\t%s\n", Clean(p.Key.Name), word, p.Pod.Status.Restarts(), Age(p.Created, now), health(p))
		}
	}
}

// Ready gives "2/3": the ready pods of those wanted; for a Job the successes,
// for a CronJob how many of its Jobs are at work.
func Ready(w *Workload) string {
	switch {
	case w.Key.Kind == "Pod" && w.Pod != nil && w.Pod.Status.Ready:
		return "1/1"
	case w.Key.Kind == "Pod":
		return "0/1"
	case w.Job != nil && w.Job.Completions == 0:
		return fmt.Sprintf("%d/1 of %d", w.Job.Succeeded, w.Job.Succeeded+w.Job.Active)
	case w.Job != nil:
		return fmt.Sprintf("%d/%d", w.Job.Succeeded, w.Job.Completions)
	case w.CronJob != nil:
		return fmt.Sprintf("%d active", w.CronJob.Active)
	}
	return fmt.Sprintf("%d/%d", w.Ready, w.Wanted)
}

func health(o *nodes.ObjectHealth) string {
	if o.Reason == "" {
		return string(o.Health)
	}
	return string(o.Health) + ": " + Clean(o.Reason)
}

func serviceTable(w io.Writer, services []nodes.ServiceOverview) {
	fmt.Fprintln(w, "SERVICE\tTYPE\tADDRESS\tPORTS\tENDPOINTS")
	for _, s := range services {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", Clean(s.Key.Namespace+"/"+s.Key.Name), s.Type, Address(s), Ports(s), Endpoints(s))
	}
}

// Address of a service: cluster addresses, or what stands in for them.
func Address(s nodes.ServiceOverview) string {
	switch {
	case len(s.ClusterIPs) > 0:
		return Clean(strings.Join(s.ClusterIPs, ", "))
	case s.External != "":
		return Clean(s.External)
	}
	return "headless"
}

// Ports of a service: "80, 443:30443/UDP, health check :31000".
func Ports(s nodes.ServiceOverview) string {
	var ports []string
	for _, p := range s.Ports {
		text := fmt.Sprint(p.Port)
		if p.NodePort != 0 {
			text += fmt.Sprintf(":%d", p.NodePort)
		}
		if p.Protocol != "TCP" {
			text += "/" + Clean(p.Protocol)
		}
		ports = append(ports, text)
	}
	if s.HealthCheckPort != 0 {
		ports = append(ports, fmt.Sprintf("health check :%d", s.HealthCheckPort))
	}
	if len(ports) == 0 {
		return "–"
	}
	return strings.Join(ports, ", ")
}

// Endpoints of a service: "3 ready, 1 not".
func Endpoints(s nodes.ServiceOverview) string {
	if s.External != "" || len(s.Ports) == 0 {
		return "–"
	}
	ready, not := len(s.Ports[0].Endpoints), s.Ports[0].NotReady
	for _, p := range s.Ports[1:] {
		ready, not = min(ready, len(p.Endpoints)), max(not, p.NotReady)
	}
	if not > 0 {
		return fmt.Sprintf("%d ready, %d not", ready, not)
	}
	return fmt.Sprintf("%d ready", ready)
}

// unwell lists the objects that have no table of their own and are not healthy.
func unwell(b *strings.Builder, o *nodes.Overview) {
	var list []*nodes.ObjectHealth
	for i := range o.Objects {
		object := &o.Objects[i]
		if !Listed(object) && rank(object.Health) < 2 {
			list = append(list, object)
		}
	}
	section(b, "not healthy", list, func(object *nodes.ObjectHealth) string {
		return Clean(object.Key.String()) + ": " + health(object)
	})
}

func section[T any](b *strings.Builder, title string, items []T, line func(T) string) {
	if len(items) == 0 {
		return
	}
	fmt.Fprintf(b, "\n%s\n", title)
	for _, item := range items {
		b.WriteString("  " + line(item) + "\n")
	}
}
