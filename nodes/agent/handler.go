package agent

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/keeper"
	"github.com/tallyman-dev/tallyman/nodes/wire"
	"github.com/tallyman-dev/tallyman/proxy"
)

var _ wire.Handler = (*Agent)(nil)

// Hello is the complete report. It waits until the agent has looked at the
// machine: a server must not take what was not looked at for gone.
func (a *Agent) Hello(ctx context.Context) (nodes.Report, error) {
	select {
	case <-a.looked:
	case <-ctx.Done():
		return nodes.Report{}, fmt.Errorf("the node has not looked at its containers yet: %w", ctx.Err())
	}
	info := a.describe(ctx)
	r := nodes.Report{Node: a.o.Name, Complete: true, Info: &info, Routes: a.routed.Load(), Fenced: a.fences.fenced()}
	held, err := a.o.Persistent.Held(ctx)
	if err != nil {
		return nodes.Report{}, err
	}
	r.Images = a.images(ctx)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.toldImages = r.Images
	r.Volumes = a.volumeStatuses(held)
	for _, uid := range slices.Sorted(maps.Keys(a.pods)) {
		w := a.pods[uid]
		r.Statuses = append(r.Statuses, w.m.Status())
		r.Held = append(r.Held, w.pod)
	}
	r.Left = a.left()
	for _, key := range slices.Sorted(maps.Keys(a.ledger)) {
		r.Ledger = append(r.Ledger, a.ledger[key])
	}
	return r, nil
}

// left are the pods that are here in part and have no worker. The caller holds mu.
func (a *Agent) left() []nodes.UID {
	here := maps.Clone(a.sweeping)
	for uid := range a.leftover {
		here[uid] = true
	}
	maps.DeleteFunc(here, func(uid nodes.UID, _ bool) bool { return a.pods[uid] != nil })
	return slices.Sorted(maps.Keys(here))
}

// Assign takes over the complete assignment.
func (a *Agent) Assign(x *nodes.Assignment) {
	a.mu.Lock()
	defer a.mu.Unlock()
	old := a.assignment
	x = keepVolumes(old, keepPods(old, x))
	first := !a.told
	a.assignment, a.partial, a.told = x, false, true
	a.setConfigs(x)
	a.store.forgetUnreadable()
	a.store.saveAssignment(old, x)
	a.fences.want(x, func(uid nodes.UID) bool { return a.pods[uid] != nil })
	a.reconcile()
	a.wakeUsage(old, x)
	for _, w := range a.volumes {
		if first && len(w.v.Detach) > 0 {
			w.poke()
		}
	}
	if old != nil {
		a.refresh(changedConfigs(old.Configs, x.Configs))
	}
}

// keepPods puts the pods of the last assignment in place of those that say the
// same, so that nothing is stored or told twice.
func keepPods(old, x *nodes.Assignment) *nodes.Assignment {
	if old == nil {
		return x
	}
	have := make(map[nodes.UID]*nodes.Pod, len(old.Pods))
	for _, p := range old.Pods {
		have[p.UID] = p
	}
	kept := *x
	kept.Pods = slices.Clone(x.Pods)
	for i, p := range kept.Pods {
		if q := have[p.UID]; q != nil && q.TemplateHash == p.TemplateHash && sameStop(p.Stop, q.Stop) {
			kept.Pods[i] = q
		}
	}
	return &kept
}

func sameStop(a, b *nodes.Stop) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

// changedConfigs names the namespaces whose ConfigMaps or Secrets differ.
func changedConfigs(old, fresh []*nodes.Config) map[string]bool {
	before := make(map[desired.Key]string, len(old))
	for _, c := range old {
		before[c.Key] = c.Version
	}
	changed := map[string]bool{}
	for _, c := range fresh {
		if v, found := before[c.Key]; !found || v != c.Version {
			changed[c.Key.Namespace] = true
		}
		delete(before, c.Key)
	}
	for key := range before {
		changed[key.Namespace] = true
	}
	return changed
}

// refresh has the pods of namespaces look at their configs again. The caller
// holds mu.
func (a *Agent) refresh(namespaces map[string]bool) {
	for _, w := range a.pods {
		if namespaces[w.pod.Namespace] {
			w.m.Assign(w.pod)
			w.m.Resync()
		}
	}
}

// Route takes over the route table; it is in force when a report says so.
func (a *Agent) Route(t *proxy.Table) {
	a.table.Store(t)
	a.wakeRoutes()
}

// Ledger keeps decisions for the server.
func (a *Agent) Ledger(complete bool, decisions []nodes.Decision) {
	a.mu.Lock()
	defer a.mu.Unlock()
	stale := map[string]bool{}
	if complete {
		for key := range a.ledger {
			stale[key] = true
		}
	}
	for _, d := range decisions {
		key := ledgerKey(d)
		if d.Value == nil {
			stale[key] = true
			continue
		}
		delete(stale, key)
		if string(a.ledger[key].Value) != string(d.Value) {
			a.ledger[key] = d
			a.store.putJSON(ledgerBucket, key, d)
		}
	}
	for key := range stale {
		delete(a.ledger, key)
		a.store.put(ledgerBucket, key, nil)
	}
}

// Logs writes a container's log.
func (a *Agent) Logs(ctx context.Context, q wire.LogQuery, w io.Writer) error {
	pod := a.worker(q.Pod)
	if pod == nil {
		return fmt.Errorf("node %s does not have pod %s", a.o.Name, q.Pod)
	}
	a.mu.Lock()
	spec := pod.pod
	a.mu.Unlock()
	status := pod.m.Status()
	c, err := chooseContainer(&status, spec, q.Container)
	if err != nil {
		return err
	}
	attempt, err := attemptOf(c, q.Previous)
	if err != nil {
		return err
	}
	return keeper.Read(ctx, logPath(a.on.logs, q.Pod, c.Name, attempt), readOptions(q, a.ports.now(), func() bool {
		return logEnded(pod.m, c.Name, c.ID, q.Previous)
	}), w)
}

func readOptions(q wire.LogQuery, now time.Time, done func() bool) keeper.ReadOptions {
	o := keeper.ReadOptions{Follow: q.Follow, Tail: max(q.Tail, 0), Since: q.Since, Timestamps: q.Timestamps, Done: done}
	if q.Tail == 0 && now.After(o.Since) {
		o.Since = now // no old lines at all
	}
	return o
}

// chooseContainer finds the container that a query means.
func chooseContainer(s *nodes.PodStatus, pod *nodes.Pod, name string) (*nodes.ContainerStatus, error) {
	if name == "" {
		name = pod.AllAnnotations()["kubectl.kubernetes.io/default-container"]
	}
	if name == "" && len(s.Containers) == 1 {
		return &s.Containers[0], nil
	}
	var names []string
	for _, list := range [][]nodes.ContainerStatus{s.Containers, s.Init} {
		for i := range list {
			if list[i].Name == name {
				return &list[i], nil
			}
			names = append(names, list[i].Name)
		}
	}
	if name == "" {
		return nil, fmt.Errorf("pod %s has several containers, name one of %s", pod.Name, strings.Join(names, ", "))
	}
	return nil, fmt.Errorf("pod %s has no container %q, only %s", pod.Name, name, strings.Join(names, ", "))
}

// attemptOf is the number of the run whose log is meant.
func attemptOf(c *nodes.ContainerStatus, previous bool) (int, error) {
	if c.ID == "" {
		return 0, fmt.Errorf("container %s has not started: %s %s", c.Name, c.Reason, c.Message)
	}
	attempt, err := strconv.Atoi(c.ID[strings.LastIndexByte(c.ID, '_')+1:])
	if err != nil {
		return 0, fmt.Errorf("container %s has an id that is not ours: %s", c.Name, c.ID)
	}
	if !previous {
		return attempt, nil
	}
	if attempt == 0 {
		return 0, fmt.Errorf("container %s has not restarted: there is no previous log", c.Name)
	}
	return attempt - 1, nil
}

// logEnded reports whether a run will write no more.
func logEnded(m *Machine, name, id string, previous bool) bool {
	if previous {
		return true
	}
	s := m.Status()
	for _, list := range [][]nodes.ContainerStatus{s.Containers, s.Init} {
		for i := range list {
			if list[i].Name == name {
				return list[i].ID != id || list[i].State != nodes.Running
			}
		}
	}
	return true
}
