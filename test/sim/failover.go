package sim

import (
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// silence is since when nodes have not been heard of, by what servers said.
type silence map[string]time.Time

// note takes in how the nodes are after a step.
func (q silence) note(s *step) {
	for name, n := range s.after.nodes {
		_, known := q[name]
		switch {
		case n.Ready:
			delete(q, name)
		case !known:
			q[name] = s.now
		}
	}
}

// mustStay says why a pod of a node that is not heard of may not be given up;
// empty when it may.
func (s *step) mustStay(uid nodes.UID, p podView) string {
	w := s.madeFor(p)
	if s.intent.words[p.node].dead {
		return ""
	}
	if why := s.storm(p.node); why != "" {
		return why
	}
	since, silent := s.silence[p.node]
	patience := s.intent.nodes.Tolerate
	if w.patience > 0 {
		patience = time.Duration(w.patience) * time.Second
	}
	if s.leavesItsNode(p) {
		patience = 0
	}
	switch {
	case !silent:
		return "its node was heard of just now"
	case w.patience == forEver && !s.leavesItsNode(p) || p.workload.Kind == kindDaemonSet:
		return "it tolerates that for ever"
	case s.now.Sub(since) < patience:
		return "its node may be silent for " + patience.String()
	case w.claim != "" || w.claimSize > 0:
		return "its data is on the node"
	case p.workload.Kind == kindStatefulSet && s.runs(p.node, uid):
		return "it runs there"
	}
	return ""
}

// madeFor is what Git said of a pod when it first asked for it.
func (s *step) madeFor(p podView) workload {
	if made := s.git.commit(p.revision); made != nil {
		if w, found := made.intent.workloads[p.workload]; found {
			return w
		}
	}
	w, _ := s.intentOf(p.workload)
	return w
}

// storm is Kubernetes' orientation: when more than two nodes and more than 55 %
// of the cluster or of a zone are silent, the fault is more likely elsewhere.
func (s *step) storm(node string) string {
	zone := s.after.nodes[node].Labels[corev1.LabelTopologyZone]
	var all, silent, allHere, silentHere int
	for name, n := range s.after.nodes {
		if s.intent.words[name].dead && !n.Ready {
			continue // it takes no part
		}
		here := n.Labels[corev1.LabelTopologyZone] == zone
		all++
		allHere += count(here)
		silent += count(!n.Ready)
		silentHere += count(here && !n.Ready)
	}
	switch {
	case silent == all:
		return "no node is heard of"
	case silent > 2 && 100*silent > 55*all:
		return "most nodes are silent"
	case zone != "" && silentHere > 2 && 100*silentHere > 55*allHere:
		return "most nodes of " + zone + " are silent"
	}
	return ""
}

func count(is bool) int {
	if is {
		return 1
	}
	return 0
}

// runsOn tells the truth about a pod.
func (w *world) runsOn(node string, uid nodes.UID) bool {
	for _, m := range w.nodes {
		if m.name != node {
			continue
		}
		for _, c := range m.runtime.running() {
			if nodes.UID(c.Labels[labelPod]) == uid {
				return true
			}
		}
	}
	return false
}

// givesUpNoMoreThanItMay: invariants 5 and 7. What a node that is not heard of
// may still run is given up when that harms nobody, and its time has come.
func givesUpNoMoreThanItMay(s *step) (err error) {
	live := s.live()
	for uid, p := range s.after.pods {
		b, known := s.before.pods[uid]
		if !known || !p.stopping || b.stopping || p.node == "" || s.intent == nil || s.after.nodes[p.node].Ready {
			continue
		}
		w, wanted := s.intentOf(p.workload)
		if !wanted || s.discarded(p.workload) || p.done || live[p.workload] > w.replicas {
			continue
		}
		if p.hash != s.after.templates[p.workload] || p.hash != s.before.templates[p.workload] {
			continue // a rollout replaces it
		}
		if why := s.mustStay(uid, p); why != "" {
			err = violated(s.broken(p.workload), "pod %s of %s on %s is given up: %s", p.name, p.workload, p.node, why)
		}
	}
	return err
}

func (s *step) broken(k desired.Key) int {
	if k.Kind == kindStatefulSet {
		return 5
	}
	return 7
}
