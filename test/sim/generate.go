package sim

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/tallyman-dev/tallyman/desired"
)

// shape is the scale of one seed.
type shape struct {
	nodes, workloads, replicas, fillers, events int
	// cpu of a machine.
	cpu int64
}

// drawShape chooses: mostly one small node, seldom many pods.
func drawShape(rng *rand.Rand) shape {
	s := shape{nodes: 1, workloads: 1 + rng.IntN(3), replicas: 5, cpu: 64, events: 6 + rng.IntN(14)}
	switch rng.IntN(10) {
	case 0, 1:
		s.nodes = 2
	case 2:
		s.nodes = 3 + rng.IntN(3)
	}
	if rng.IntN(4) == 0 {
		s.fillers = 12 + rng.IntN(10)
	}
	if rng.IntN(5) == 0 {
		s.cpu = 1
	}
	if rng.IntN(50) == 0 {
		s.nodes, s.replicas, s.workloads, s.events, s.cpu = 4, 60, 4, 6, 64
	}
	return s
}

// images that can be pulled, and one that can't before the faults end.
var images = []string{"app:1", "app:2", "app:3", badImage}

const badImage = "bad:1"

func pick[T any](rng *rand.Rand, list ...T) T { return list[rng.IntN(len(list))] }

func (w *world) namespaces() []string { return []string{"default", "shop"} }

func (w *world) firstIntent() *intent {
	i := newIntent(w.extras.keep)
	w.fleet.time(i)
	i.namespaces["shop"] = true
	for _, namespace := range w.namespaces() {
		i.configs[desired.Key{Kind: kindConfigMap, Namespace: namespace, Name: "settings"}] = "1"
		i.configs[desired.Key{Kind: kindSecret, Namespace: namespace, Name: "password"}] = "1"
	}
	for n := range w.shape.fillers {
		i.configs[desired.Key{Kind: kindConfigMap, Namespace: "default", Name: fmt.Sprintf("filler-%02d", n)}] = "x"
	}
	for range w.shape.workloads {
		w.addWorkload(i)
	}
	w.extras.begin(w, i)
	return i
}

// newIntent is an empty one.
func newIntent(keep time.Duration) *intent {
	return &intent{
		workloads: map[desired.Key]workload{}, services: map[desired.Key]service{}, configs: map[desired.Key]string{},
		namespaces: map[string]bool{}, claims: map[desired.Key]int{}, classes: map[string]bool{}, scalers: map[desired.Key]scaler{}, keep: keep,
		nodes: desired.DefaultSettings().Nodes,
	}
}

// addWorkload adds one, with a service before it more often than not.
func (w *world) addWorkload(i *intent) {
	namespace := pick(w.rng, w.namespaces()...)
	kind := pick(w.rng, kindDeployment, kindDeployment, kindDeployment, kindReplicaSet, kindPod, kindStatefulSet, kindStatefulSet, kindDaemonSet, kindJob)
	kind = w.fleet.kind(kind)
	name := fmt.Sprintf("app-%d", w.rng.IntN(2*w.shape.workloads+2))
	key := desired.Key{Kind: kind, Namespace: namespace, Name: name}
	switch kind {
	case kindPod:
	case kindJob:
		key.Group = "batch"
	default:
		key.Group = "apps"
	}
	for k := range i.workloads {
		if k.Namespace == namespace && k.Name == name {
			return
		}
	}
	i.namespaces["shop"] = true
	i.workloads[key] = w.drawWorkload(key)
	if w.rng.IntN(4) > 0 {
		i.services[desired.Key{Kind: kindService, Namespace: namespace, Name: name}] = service{
			app: name, headless: w.rng.IntN(5) == 0, early: w.rng.IntN(8) == 0,
		}
	}
}

func (w *world) drawWorkload(k desired.Key) workload {
	v := workload{
		replicas: w.rng.IntN(w.shape.replicas + 1), image: pick(w.rng, images[:3]...),
		surge: pick(w.rng, "1", "25%", "100%", "0"), unavailable: pick(w.rng, "0", "1", "25%", "50%"),
		recreate: w.rng.IntN(6) == 0, minReady: pick(w.rng, 0, 0, 0, 2, 10), probe: w.rng.IntN(2) == 0,
		cpu: pick(w.rng, int64(0), 50, 100), grace: pick(w.rng, int64(1), 5, 30), parallel: w.rng.IntN(2) == 0,
	}
	if v.surge == "0" && v.unavailable == "0" {
		v.unavailable = "1"
	}
	if kind := pick(w.rng, "", kindConfigMap, kindSecret); kind != "" {
		v.config = desired.Key{Kind: kind, Namespace: k.Namespace, Name: "settings"}
		if kind == kindSecret {
			v.config.Name = "password"
		}
	}
	v.replicas = w.size(k.Kind, v.replicas)
	if k.Kind == kindJob {
		v.completions = 1 + w.rng.IntN(4)
	}
	v.company = w.fleet.draw(k)
	if w.fleet != nil && w.shape.cpu == 1 {
		v.cpu *= 5 // machines are soon full
	}
	return v
}

// size is how many pods a workload has that would have n if it could choose.
func (w *world) size(kind string, n int) int {
	switch kind {
	case kindPod, kindCronJob:
		return 1
	case kindStatefulSet: // one after the other: many would take too long
		return min(n, 5)
	case kindDaemonSet:
		return w.shape.nodes
	case kindJob:
		return 1 + n%3
	}
	return n
}

// revise pushes a changed intent.
func (w *world) revise() {
	i := w.repo.head().intent.clone()
	var subject string
	for range 1 + w.rng.IntN(2) {
		subject += w.mutate(i) + "; "
	}
	if w.rng.IntN(8) == 0 {
		w.pushInvalid(i)
		return
	}
	w.pushMaybeConfirmed(i, subject)
}

// pushMaybeConfirmed confirms what the guard would hold, half of the time.
func (w *world) pushMaybeConfirmed(i *intent, subject string) {
	i.complete()
	w.tended.say(i)
	truth := w.witness.truth()
	if truth == nil || w.rng.IntN(2) == 0 {
		w.push(i, subject)
		return
	}
	gone := len(truth.intent.gone(i))
	if gone == 0 {
		w.push(i, subject)
		return
	}
	if w.rng.IntN(6) == 0 {
		gone++ // a wrong number confirms nothing
	}
	w.push(i, subject, fmt.Sprintf("Tally-Confirm: delete %d", gone))
}

// mutate changes one thing and says what.
func (w *world) mutate(i *intent) string {
	keys := slices.SortedFunc(maps.Keys(i.workloads), desired.Key.Compare)
	if len(keys) == 0 || w.rng.IntN(10) == 0 {
		w.addWorkload(i)
		return "add"
	}
	k := pick(w.rng, keys...)
	v := i.workloads[k]
	what := pick(w.rng, "scale", "scale", "image", "image", "image", "bad image", "config", "config", "delete", "selector", "strategy", "service", "fillers", "namespace", "empty", "redraw")
	switch what {
	case "scale":
		v.replicas = w.size(k.Kind, w.rng.IntN(w.shape.replicas+1))
	case "image":
		v.image = pick(w.rng, images[:3]...)
	case "bad image":
		v.image = badImage
	case "selector":
		v.generation = w.rng.IntN(3)
	case "redraw":
		data, times, done := v.storage, v.schedule, v.completions
		v = w.drawWorkload(k)
		v.storage, v.schedule = data, times
		if k.Kind == kindCronJob {
			v.completions = done
		}
	case "strategy":
		fresh := w.drawWorkload(k)
		v.surge, v.unavailable, v.recreate, v.minReady = fresh.surge, fresh.unavailable, fresh.recreate, fresh.minReady
	default:
		w.mutateOthers(i, k, what)
		return what + " " + k.String()
	}
	i.workloads[k] = v
	return what + " " + k.String()
}

func (w *world) mutateOthers(i *intent, k desired.Key, what string) {
	switch what {
	case "config":
		for _, c := range slices.SortedFunc(maps.Keys(i.configs), desired.Key.Compare) {
			if c.Namespace == k.Namespace && w.rng.IntN(2) == 0 {
				i.configs[c] = fmt.Sprint(w.rng.IntN(3))
			}
		}
	case "delete":
		delete(i.workloads, k)
	case "service":
		s := desired.Key{Kind: kindService, Namespace: k.Namespace, Name: k.Name}
		if _, found := i.services[s]; found {
			delete(i.services, s)
		} else {
			i.services[s] = service{app: k.Name}
		}
	case "fillers":
		maps.DeleteFunc(i.configs, func(c desired.Key, value string) bool { return value == "x" })
	case "namespace":
		if w.rng.IntN(2) == 0 {
			i.dropNamespace("shop")
		}
	case "empty":
		if w.rng.IntN(3) == 0 {
			empty := newIntent(i.keep)
			empty.nodes = i.nodes
			*i = *empty
		}
	}
}

// dropNamespace removes a namespace with all that is in it but what others need.
func (i *intent) dropNamespace(name string) {
	delete(i.namespaces, name)
	maps.DeleteFunc(i.workloads, func(k desired.Key, _ workload) bool { return k.Namespace == name })
	maps.DeleteFunc(i.services, func(k desired.Key, _ service) bool { return k.Namespace == name })
	maps.DeleteFunc(i.configs, func(k desired.Key, _ string) bool { return k.Namespace == name })
	maps.DeleteFunc(i.claims, func(k desired.Key, _ int) bool { return k.Namespace == name })
	maps.DeleteFunc(i.scalers, func(k desired.Key, _ scaler) bool { return k.Namespace == name })
}

// complete adds the configs that the workloads read: a valid revision has them.
// Without their claims, pods would wait for ever.
func (i *intent) complete() {
	for k, v := range i.workloads {
		if c := claimKey(k.Namespace, v.claim); v.claim != "" && i.claims[c] == 0 {
			i.claims[c] = 1
			i.classes[keptClass] = true
		}
		if _, found := i.configs[v.config]; !found && !v.config.IsZero() {
			i.configs[v.config] = "1"
		}
	}
}

// revert pushes what an earlier commit said.
func (w *world) revert() {
	w.repo.mu.Lock()
	old := w.repo.order[w.rng.IntN(len(w.repo.order))]
	w.repo.mu.Unlock()
	w.pushMaybeConfirmed(old.intent.clone(), "revert to "+old.revision.SHA[36:])
}

// pushConfirmed confirms all that is deleted of what is in force.
func (w *world) pushConfirmed(i *intent, subject string) {
	i.complete()
	w.tended.say(i)
	gone := 0
	if truth := w.witness.truth(); truth != nil {
		gone = len(truth.intent.gone(i))
	}
	w.push(i, subject, fmt.Sprintf("Tally-Confirm: delete %d", gone))
}
