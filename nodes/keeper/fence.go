package keeper

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/nodes"
)

// Fence says what to kill of a pod.
type Fence struct {
	Pod nodes.UID `json:"pod"`
	// Groups are control groups, "/tallyman/pod…" say, all of whose processes are
	// the pod's. One that does not exist holds none.
	Groups []string `json:"groups"`
}

// HeldFence is a fence that the keeper holds.
type HeldFence struct {
	Fence
	// Ends is when the pod is killed, on CLOCK_BOOTTIME.
	Ends time.Duration `json:"ends"`
	// Killed is when processes of the pod were last killed for it, 0 for never.
	Killed time.Duration `json:"killed,omitempty"`
}

const (
	// killAgain is the pause between two looks at a pod that is being killed,
	// lookAgain that between looks for what enters a killed pod's groups late.
	killAgain = 10 * time.Millisecond
	lookAgain = 100 * time.Millisecond
	// lateFor is how long somebody may be late: then a look a second is enough.
	lateFor  = 10 * time.Second
	lookIdle = time.Second
	// petEvery is how often the watchdog hears that the keeper lives.
	petEvery = 500 * time.Millisecond
)

// alarm wakes the fences' loop; it is a timerfd.
type alarm interface {
	// set has wait return at the instant, or at once if that has passed.
	set(at time.Duration) error
	wait() error
}

// fences kills pods whose lease was not renewed in time.
type fences struct {
	log      *slog.Logger
	file     string
	boot     string
	clock    func() time.Duration
	alarm    alarm
	kill     func(groups []string) (found int, err error)
	watchdog *watchdog
	// prepare is called when the first fence is taken, rest when the last is gone.
	prepare, rest func()

	// striking is held over a strike.
	striking sync.Mutex

	mu sync.Mutex
	// guarded by mu
	held  map[nodes.UID]*HeldFence
	ended bool

	// due and failing belong to run.
	due []HeldFence
	// failing are the pods that could not be killed, or not looked for.
	failing map[nodes.UID]*seldom
}

// storedFences is what the next keeper finds; it holds within one boot.
type storedFences struct {
	Boot string       `json:"boot"`
	Held []*HeldFence `json:"held"`
}

// restore takes over what an earlier keeper held. What it missed is due at once.
func (f *fences) restore() error {
	encoded, err := os.ReadFile(f.file)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var stored storedFences
	if err == nil {
		err = json.Unmarshal(encoded, &stored)
	}
	if err != nil {
		return fmt.Errorf("read fences: %w", err)
	}
	if stored.Boot != f.boot {
		return nil // nothing of it has survived
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, h := range stored.Held {
		f.held[h.Pod] = h
	}
	if len(f.held) > 0 {
		f.prepare()
		f.log.Info("fences taken over", "pods", len(f.held))
	}
	return nil
}

// arm holds fences until ends. A fence that ends later already stays as it is.
func (f *fences) arm(ends time.Duration, list []Fence) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := f.clock(); ends <= now {
		return fmt.Errorf("the lease was over %s ago", now-ends)
	}
	for _, fence := range list {
		if fence.Pod == "" || len(fence.Groups) == 0 || slices.ContainsFunc(fence.Groups, badGroup) {
			return fmt.Errorf("fence of pod %q: not valid groups: %q", fence.Pod, fence.Groups)
		}
	}
	if len(f.held) == 0 && len(list) > 0 {
		f.prepare()
	}
	for _, fence := range list {
		h := f.held[fence.Pod]
		if h == nil {
			h = &HeldFence{}
			f.held[fence.Pod] = h
		}
		h.Fence, h.Ends = fence, max(h.Ends, ends)
	}
	return errors.Join(f.store(), f.alarm.set(0))
}

// badGroup refuses what is not below a group of its own: nobody may have the
// whole machine killed.
func badGroup(group string) bool {
	return filepath.Clean(group) != group || !filepath.IsAbs(group) || filepath.Dir(group) == "/"
}

// drop lets pods go.
func (f *fences) drop(pods []nodes.UID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	before := len(f.held)
	for _, pod := range pods {
		delete(f.held, pod)
	}
	if before > 0 && len(f.held) == 0 {
		f.rest()
	}
	return errors.Join(f.store(), f.alarm.set(0))
}

// list gives all fences by pod.
func (f *fences) list() []HeldFence {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := []HeldFence{}
	for _, pod := range slices.Sorted(maps.Keys(f.held)) {
		list = append(list, *f.held[pod])
	}
	return list
}

// store writes all fences for the next keeper. The caller holds mu.
func (f *fences) store() error {
	stored := storedFences{Boot: f.boot}
	for _, pod := range slices.Sorted(maps.Keys(f.held)) {
		stored.Held = append(stored.Held, f.held[pod])
	}
	encoded, err := json.Marshal(stored)
	if err != nil {
		return err
	}
	if err := writeFile(f.file, encoded); err != nil {
		return fmt.Errorf("store fences: %w", err)
	}
	return nil
}

// run kills what is due until end is called. It has a thread of its own, so
// that it waits for nobody but the kernel.
func (f *fences) run() error {
	runtime.LockOSThread()                          // for good: nobody else is to get a thread with this priority
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, -20) // of this thread; where that is refused, it must do
	for {
		more, err := f.strike()
		if err != nil {
			return fmt.Errorf("fences: %w", err)
		}
		if !more {
			return nil
		}
		if err := f.alarm.wait(); err != nil {
			return fmt.Errorf("fences: wait: %w", err)
		}
	}
}

// end has run return. The fences stay for the next keeper.
func (f *fences) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = true
	if err := f.alarm.set(0); err != nil {
		f.log.Error("end fencing", "error", err)
	}
}

// between does something that ends this process, or nothing, while nobody is
// being killed: half a kill would leave a pod frozen, or nobody to tell of it.
func (f *fences) between(do func() error) error {
	f.striking.Lock()
	defer f.striking.Unlock()
	return do()
}

// strike kills the pods whose fences are over and sets the alarm for the next
// time; more is false once the fences have ended.
func (f *fences) strike() (more bool, err error) {
	f.striking.Lock()
	defer f.striking.Unlock()
	f.mu.Lock()
	now := f.clock()
	f.due = f.due[:0]
	for _, h := range f.held {
		if h.Ends <= now {
			f.due = append(f.due, *h)
		}
	}
	f.mu.Unlock()
	next, alive := time.Duration(0), false
	for i := range f.due {
		h := &f.due[i]
		found, err := f.kill(h.Groups)
		f.complain(h.Pod, now, err)
		again := lookIdle
		switch {
		case found > 0 || err != nil:
			alive, again = true, killAgain
		case now-h.Ends < lateFor:
			again = lookAgain
		}
		next = earliest(next, now+again)
		if found > 0 {
			f.note(h.Pod, now, found)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended {
		return false, nil
	}
	for _, h := range f.held {
		if h.Ends > now {
			next = earliest(next, h.Ends)
		}
	}
	if f.watchdog.tend(len(f.held) > 0, alive) {
		next = earliest(next, now+petEvery)
	}
	if next == 0 {
		next = now + time.Hour
	}
	return true, f.alarm.set(next)
}

// complain tells of a pod that could not be killed; nil is that it could.
func (f *fences) complain(pod nodes.UID, now time.Duration, err error) {
	if err == nil {
		delete(f.failing, pod)
		return
	}
	if f.failing == nil {
		f.failing = map[nodes.UID]*seldom{}
	}
	if f.failing[pod] == nil {
		f.failing[pod] = &seldom{}
	}
	if times := f.failing[pod].again(now); times > 0 {
		f.log.Error("kill fenced pod", "uid", pod, "times", times, "error", err)
	}
}

// note keeps that a pod was killed by its fence, for the agent to tell.
func (f *fences) note(pod nodes.UID, now time.Duration, found int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.held[pod]
	if h == nil {
		return // let go meanwhile
	}
	first := h.Killed < h.Ends
	h.Killed = now
	if !first {
		return
	}
	f.log.Warn("killed a fenced pod: its lease was not renewed", "uid", pod, "processes", found)
	if err := f.store(); err != nil {
		f.log.Error("note a killed pod", "uid", pod, "error", err)
	}
}

// earliest is the smaller one of two instants of which 0 is none.
func earliest(a, b time.Duration) time.Duration {
	if a == 0 || b == 0 {
		return cmp.Or(a, b)
	}
	return min(a, b)
}
