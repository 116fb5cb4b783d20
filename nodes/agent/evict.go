package agent

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/agent/pressure"
)

const (
	// pressureEvery is how often the machine is read, as a kubelet does.
	pressureEvery = 10 * time.Second
	// pressureLasts is how long new pods are kept away after the last shortage:
	// otherwise the next pod brings it back at once.
	pressureLasts = 5 * time.Minute
	// imagesFirst is how long a disk must have been short before pods go for it:
	// until then images are collected, which takes a minute.
	imagesFirst = 90 * time.Second
)

// shortages remember how long the machine has been short of what.
type shortages struct {
	began, seen map[pressure.Signal]time.Time
}

// relieve watches the machine and evicts pods while it is short of memory or
// disk, one at a time, until ctx ends.
func (a *Agent) relieve(ctx context.Context) {
	if a.o.Readings == nil {
		return
	}
	s := shortages{began: map[pressure.Signal]time.Time{}, seen: map[pressure.Signal]time.Time{}}
	tick := time.NewTicker(pressureEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			a.relieveOnce(ctx, &s)
		}
	}
}

func (a *Agent) relieveOnce(ctx context.Context, s *shortages) {
	now := a.ports.now()
	short := pressure.Shortages(a.o.Readings(ctx))
	a.setTaints(s.note(short, now))
	for _, this := range short {
		if this.Signal != pressure.Memory {
			a.Pressed()
			waited := now.Sub(s.began[this.Signal]) >= imagesFirst
			if waited || !this.Images() {
				a.decline(this)
			}
			if !waited {
				continue
			}
		}
		if a.evictOne(ctx, this) {
			return
		}
	}
}

// note keeps since when and until when each signal was short; it returns the
// taints that follow.
func (s *shortages) note(short []pressure.Short, now time.Time) []corev1.Taint {
	is := map[pressure.Signal]bool{}
	for _, this := range short {
		is[this.Signal] = true
		s.seen[this.Signal] = now
		if s.began[this.Signal].IsZero() {
			s.began[this.Signal] = now
		}
	}
	var taints []corev1.Taint
	for _, signal := range slices.Sorted(maps.Keys(s.seen)) {
		if !is[signal] {
			delete(s.began, signal)
		}
		if now.Sub(s.seen[signal]) > pressureLasts {
			delete(s.seen, signal)
			continue
		}
		if t := signal.Taint(); !slices.Contains(taints, t) {
			taints = append(taints, t)
		}
	}
	return taints
}

// setTaints has the server keep new pods away.
func (a *Agent) setTaints(taints []corev1.Taint) {
	a.mu.Lock()
	same := slices.Equal(a.taints, taints)
	a.taints = taints
	a.mu.Unlock()
	if !same {
		a.log.Warn("node under pressure, or no longer", "taints", taints)
		a.tell()
	}
}

// decline ends the pods that cannot begin for want of room, as a kubelet would
// have refused them had it known: somewhere else there may be some.
func (a *Agent) decline(short pressure.Short) {
	for _, w := range a.workers() {
		w.m.Decline(fmt.Sprintf("Pod was rejected: The node had condition: [%s]. ", short.Signal.Condition()))
	}
}

// evictOne ends the pod that goes first for a shortage; false when there is none.
func (a *Agent) evictOne(ctx context.Context, short pressure.Short) bool {
	var pods []pressure.Pod
	machines := map[nodes.UID]*worker{}
	for _, w := range a.workers() {
		status := w.m.Status()
		if status.Done() || status.Phase == corev1.PodPending && len(alive(&status)) == 0 {
			continue
		}
		pods = append(pods, a.weigh(ctx, w, short.Signal == pressure.Memory))
		machines[w.m.Status().UID] = w
	}
	ranked := pressure.Rank(short, pods)
	if len(ranked) == 0 {
		a.log.Error("the node is short and no pod can be evicted", "signal", short.Signal, "available", short.Reading.Available)
		return false
	}
	first := &ranked[0]
	a.log.Warn("pod evicted", "pod", first.Namespace+"/"+first.Name, "signal", short.Signal, "available", short.Reading.Available)
	machines[first.UID].m.Evict(pressure.Why(short, first))
	return true
}

// checkLimits evicts a pod that holds more of the disk than it may.
func (a *Agent) checkLimits(ctx context.Context, w *worker) {
	a.mu.Lock()
	pod := w.pod
	a.mu.Unlock()
	if !pressure.Limited(&pod.Template.Spec) {
		return
	}
	p := a.weigh(ctx, w, false)
	if why := pressure.Excess(&p); why != "" {
		w.m.Evict(why)
	}
}

// weigh measures what a pod uses of memory, or of the disk. What cannot be
// measured counts as nothing.
func (a *Agent) weigh(ctx context.Context, w *worker, memory bool) pressure.Pod {
	a.mu.Lock()
	p := pressure.Pod{Pod: w.pod}
	a.mu.Unlock()
	status := w.m.Status()
	for _, c := range alive(&status) {
		used := pressure.Container{Name: c.Name}
		if memory {
			if u, err := a.o.Runtime.Usage(ctx, c.ID); err == nil {
				used.Memory = u.Memory
			}
		} else {
			used.Layer, used.Logs = a.written(ctx, c), a.logged(p.UID, c)
		}
		p.Containers = append(p.Containers, used)
	}
	if memory {
		return p
	}
	var err error
	if p.Volumes, err = a.o.Volumes.Disk(ctx, p.Pod); err != nil {
		a.log.Debug("measure volumes", "uid", p.UID, "err", err)
	}
	return p
}

// written is a container's writable layer.
func (a *Agent) written(ctx context.Context, c nodes.ContainerStatus) nodes.DiskUsage {
	used, err := a.o.Runtime.Written(ctx, c.ID)
	if err != nil {
		a.log.Debug("measure container", "container_id", c.ID, "err", err)
	}
	return used
}

// logged are the logs of a container.
func (a *Agent) logged(uid nodes.UID, c nodes.ContainerStatus) nodes.DiskUsage {
	var used nodes.DiskUsage
	logs := filepath.Dir(logPath(a.on.logs, uid, c.Name, 0))
	_ = filepath.WalkDir(logs, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if info, err := d.Info(); err == nil {
				used.Add(nodes.DiskUsage{Bytes: info.Size(), Files: 1})
			}
		}
		return nil
	})
	return used
}

// alive are the containers of a pod that run, sidecars included.
func alive(s *nodes.PodStatus) []nodes.ContainerStatus {
	var list []nodes.ContainerStatus
	for _, c := range slices.Concat(s.Init, s.Containers) {
		if c.State == nodes.Running {
			list = append(list, c)
		}
	}
	return list
}

// MachineReadings reads the machine: its memory, the file system of dataDir,
// and that of the images, which imageRoot names. What cannot be read is left
// out, and so not short.
func MachineReadings(dataDir string, imageRoot func(context.Context) (string, error)) func(context.Context) map[pressure.Signal]pressure.Reading {
	return func(ctx context.Context) map[pressure.Signal]pressure.Reading {
		readings := map[pressure.Signal]pressure.Reading{}
		if r, err := memoryReading("/proc/meminfo"); err == nil {
			readings[pressure.Memory] = r
		}
		readDisk(readings, dataDir, pressure.NodeFS, pressure.NodeFSFiles)
		if root, err := imageRoot(ctx); err == nil {
			readDisk(readings, root, pressure.ImageFS, pressure.ImageFSFiles)
		}
		return readings
	}
}

// readDisk reads the file system that a directory lies on.
func readDisk(readings map[pressure.Signal]pressure.Reading, dir string, space, files pressure.Signal) {
	var s unix.Statfs_t
	var at unix.Stat_t
	if unix.Statfs(dir, &s) != nil || unix.Stat(dir, &at) != nil {
		return
	}
	readings[space] = pressure.Reading{Available: int64(s.Bavail) * s.Bsize, Capacity: int64(s.Blocks) * s.Bsize, Device: at.Dev}
	readings[files] = pressure.Reading{Available: int64(s.Ffree), Capacity: int64(s.Files), Device: at.Dev}
}

// memoryReading takes what the kernel says of memory that programs could have.
func memoryReading(path string) (pressure.Reading, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return pressure.Reading{}, err
	}
	var r pressure.Reading
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		kib, err := strconv.ParseInt(words[1], 10, 64)
		switch {
		case err != nil:
		case words[0] == "MemTotal:":
			r.Capacity = kib << 10
		case words[0] == "MemAvailable:":
			r.Available = kib << 10
		}
	}
	if r.Capacity == 0 || r.Available == 0 {
		return r, fmt.Errorf("%s does not tell of memory", path)
	}
	return r, nil
}
