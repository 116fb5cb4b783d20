package sim

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// bound are the pods that a step bound to a node.
func (s *step) bound(f func(nodes.UID, podView, company)) {
	for uid, p := range s.after.pods {
		if p.node == "" || p.stopping || s.before.pods[uid].node != "" || s.decided[uid] != nil {
			continue
		}
		w, wanted := s.intentOf(p.workload)
		if !wanted || p.hash != s.after.templates[p.workload] {
			continue // made for an earlier revision, whose wishes it has
		}
		f(uid, p, w.company)
	}
}

// podsArePlacedWell: invariant 6. A new pod goes where its manifest allows it,
// and to a node that is there.
func podsArePlacedWell(s *step) (err error) {
	s.bound(func(uid nodes.UID, p podView, c company) {
		n, known := s.after.nodes[p.node]
		shunned := s.intent.words[p.node].isShunned(p.workload)
		switch {
		case shunned != "":
			err = violated(6, "pod %s of %s is bound to node %s, which is %s", p.name, p.workload, p.node, shunned)
		case !known || !n.Ready:
			err = violated(6, "pod %s is bound to node %s, which is silent", p.name, p.node)
		case c.zone != "" && n.Labels[corev1.LabelTopologyZone] != c.zone:
			err = violated(6, "pod %s of %s is bound to %s, which is not in %s", p.name, p.workload, p.node, c.zone)
		case c.fast && n.Labels[labelDisk] != fastDisk:
			err = violated(6, "pod %s of %s is bound to %s, whose disk is slow", p.name, p.workload, p.node)
		case c.apart == must && s.hasOther(uid, p):
			err = violated(6, "pod %s of %s is bound to %s, where another one is", p.name, p.workload, p.node)
		case c.spread == must && c.over != "":
			if skew := s.skew(p, c); skew > 1 {
				err = violated(6, "pod %s of %s is bound to %s, and the skew over %s is %d", p.name, p.workload, p.node, c.over, skew)
			}
		}
	})
	return err
}

// hasOther reports whether another pod of a workload of that name is on the same node.
func (s *step) hasOther(uid nodes.UID, p podView) bool {
	for other, o := range s.after.pods {
		if other != uid && o.node == p.node && !o.done && sameApp(o.workload, p.workload) {
			return true
		}
	}
	return false
}

func sameApp(a, b desired.Key) bool { return a.Namespace == b.Namespace && a.Name == b.Name }

// skew is by how many pods the domain of a new one has more than the emptiest
// with a node that is there; 0 when pods of the workload went in the same step.
func (s *step) skew(p podView, c company) int {
	domain := func(node string) string {
		if c.over == corev1.LabelHostname {
			return node
		}
		return s.after.nodes[node].Labels[c.over]
	}
	counts := map[string]int{}
	for name, n := range s.after.nodes {
		if n.Ready {
			counts[domain(name)] += 0
		}
	}
	for uid, o := range s.after.pods {
		if !sameApp(o.workload, p.workload) || o.node == "" {
			continue
		}
		if b := s.before.pods[uid]; b.stopping != o.stopping || b.done != o.done {
			return 0
		}
		if !o.stopping && !o.done {
			counts[domain(o.node)]++
		}
	}
	for uid, b := range s.before.pods {
		if _, there := s.after.pods[uid]; !there && sameApp(b.workload, p.workload) {
			return 0
		}
	}
	least := counts[domain(p.node)]
	for name, n := range s.after.nodes {
		if n.Ready {
			least = min(least, counts[domain(name)])
		}
	}
	return counts[domain(p.node)] - least
}

// portsAreFree: invariant 6. No two pods claim one port of a node, by what Git
// said when it first asked for them.
func portsAreFree(a *nodes.Assignment, v *view, git *repository) error {
	var holder nodes.UID
	for _, p := range a.Pods {
		made := git.commit(p.Revision)
		if v.pods[p.UID].done || made == nil || !made.intent.workloads[p.Workload].port {
			continue
		}
		if holder != "" {
			return violated(6, "node %s is to run the pods %s and %s, which both claim port %d", a.Node, holder, p.UID, hostPort)
		}
		holder = p.UID
	}
	return nil
}
