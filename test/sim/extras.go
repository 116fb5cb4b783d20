package sim

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/tallyman-dev/tallyman/desired"
)

// extras are what a seed may have beside pods and services. They are drawn from
// a source of chance of their own: what the others draw stays the same.
type extras struct {
	rng *rand.Rand
	// storage tells whether there are claims, keep how long their data outlives them.
	storage bool
	keep    time.Duration
	// scalers and schedules tell whether there are autoscalers and CronJobs.
	scalers, schedules bool
}

func drawExtras(seed uint64) *extras {
	x := &extras{rng: rand.New(rand.NewPCG(seed, 0xda7a)), keep: desired.DefaultSettings().KeepData}
	x.storage = x.rng.IntN(3) == 0
	if x.storage {
		x.keep = pick(x.rng, 15*time.Second, time.Minute, 24*time.Hour)
	}
	x.scalers, x.schedules = x.rng.IntN(6) == 0, x.rng.IntN(8) == 0
	return x
}

// plainExtras are none.
func plainExtras(seed uint64) *extras {
	x := drawExtras(seed)
	x.storage, x.keep, x.scalers, x.schedules = false, desired.DefaultSettings().KeepData, false, false
	return x
}

// richExtras are all of them.
func richExtras(seed uint64) *extras {
	x := drawExtras(seed)
	x.storage, x.scalers, x.schedules = true, true, true
	x.keep = pick(x.rng, 15*time.Second, time.Minute)
	return x
}

// any reports whether the seed has extras at all.
func (x *extras) any() bool { return x.storage || x.scalers || x.schedules }

// begin adds to the first revision.
func (x *extras) begin(w *world, i *intent) {
	if x.storage {
		i.classes[keptClass] = true
		x.changeStorage(i)
		x.changeStorage(i)
	}
	if x.scalers {
		x.changeScaler(w, i)
	}
	if x.schedules {
		x.changeSchedule(w, i)
	}
}

// event lets another thing happen now and then.
func (x *extras) event(w *world) {
	if !x.any() || x.rng.IntN(5) < 3 {
		return
	}
	if x.scalers && x.rng.IntN(3) > 0 {
		x.changeDemand(w)
		return
	}
	i := w.repo.head().intent.clone()
	subject := ""
	for range 1 + x.rng.IntN(2) {
		subject += x.change(w, i) + "; "
	}
	w.pushMaybeConfirmed(i, subject)
}

// change changes one of what the seed has.
func (x *extras) change(w *world, i *intent) string {
	var can []func() string
	if x.storage {
		can = append(can, func() string { return x.changeStorage(i) })
	}
	if x.scalers {
		can = append(can, func() string { return x.changeScaler(w, i) })
	}
	if x.schedules {
		can = append(can, func() string { return x.changeSchedule(w, i) })
	}
	return pick(x.rng, can...)()
}

// changeStorage changes claims, or who uses them, and says what.
func (x *extras) changeStorage(i *intent) string {
	what := pick(x.rng, "attach", "attach", "templates", "templates", "policy", "grow", "grow", "drop", "drop")
	if what == "grow" || what == "drop" {
		return x.changeClaim(i, what)
	}
	keys := slices.SortedFunc(maps.Keys(i.workloads), desired.Key.Compare)
	if len(keys) == 0 {
		return "nothing"
	}
	k := pick(x.rng, keys...)
	v := i.workloads[k]
	switch {
	case k.Kind == kindDaemonSet: // its pods are on nodes which the data is not on
		return "nothing"
	case what == "attach":
		v.claim = pick(x.rng, "", "disk-0", "disk-0", "disk-1", "kept-0")
	case k.Kind != kindStatefulSet:
		return "nothing"
	case what == "templates":
		v.claimSize = x.rng.IntN(3)
	case what == "policy":
		v.endsWhenScaled, v.endsWhenDeleted = x.rng.IntN(2) == 0, x.rng.IntN(2) == 0
	}
	i.workloads[k] = v
	i.complete()
	return what + " " + k.String()
}

func (x *extras) changeClaim(i *intent, what string) string {
	keys := slices.SortedFunc(maps.Keys(i.claims), desired.Key.Compare)
	if len(keys) == 0 {
		return "nothing"
	}
	k := pick(x.rng, keys...)
	if what == "grow" {
		i.claims[k]++
		return fmt.Sprintf("grow %s to %dGi", k, i.claims[k])
	}
	delete(i.claims, k)
	for name, v := range i.workloads {
		if name.Namespace == k.Namespace && v.claim == k.Name {
			v.claim = ""
			i.workloads[name] = v
		}
	}
	return "drop " + k.String()
}
