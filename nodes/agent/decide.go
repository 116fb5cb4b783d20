package agent

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/agent/spec"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

// view is all that decide looks at. Nothing in it is changed by deciding.
type view struct {
	pod    *nodes.Pod
	memory *Memory
	now    time.Time
	// seen is what the runtime last said of the pod's containers, by ID.
	seen map[string]runtime.Status
	// mounted and attached: volumes and network are there.
	mounted, attached bool
	// tokenDue is when a service-account token is to be asked for, zero for a pod
	// without; lacksToken that its volumes cannot be mounted before.
	tokenDue   time.Time
	lacksToken bool
	// images tells which containers' images are on the node.
	images map[string]bool
	// busy containers have a hook or a pull under way.
	busy map[string]bool
	// unleased: the pod is fenced and there is no lease under which it may start.
	unleased bool
	// rerouting: the node has yet to bring its newest routes into force; queued:
	// it has, and connections wait for the pod's programs to accept them. Known
	// only while the pod is ended.
	rerouting, queued bool
	// shed: the pod has ended, that is known for good, and the node needs room.
	shed bool
	// notBefore holds back what went wrong a moment ago, by operation.
	notBefore map[string]time.Time
}

// op is one kind of action.
type op string

const (
	opMount   op = "mount"
	opToken   op = "token"
	opAttach  op = "attach"
	opPull    op = "pull"
	opRun     op = "run"
	opPost    op = "post-start"
	opCollect op = "collect"
	opPre     op = "pre-stop"
	opSignal  op = "signal"
	opForce   op = "force"
	opInit    op = "initialized"
	opFail    op = "fail"
	opEnd     op = "end"
	opDelete  op = "delete"
	opFinish  op = "finish"
	opKillOne op = "kill-one"
	opResize  op = "resize"
	opRenew   op = "restart-to-resize"
	opYield   op = "yield"
	opReset   op = "reset"
)

// action is one thing to do now.
type action struct {
	op op
	// container by name; for opDelete the ID.
	container string
	// phase for opEnd, reason and message for opFail.
	phase           nodes.Phase
	reason, message string
}

// verdict is what follows from a view: actions in order, and when to look
// again even if nothing happens (zero: never).
type verdict struct {
	actions []action
	wake    time.Time
}

func (d *verdict) do(o op, container string) {
	d.actions = append(d.actions, action{op: o, container: container})
}

func (d *verdict) at(t time.Time) {
	if d.wake.IsZero() || t.Before(d.wake) {
		d.wake = t
	}
}

// decider gathers the verdict on one view.
type decider struct {
	*view
	verdict
	spec *corev1.PodSpec
}

// decide is the whole of what a pod's machine knows about the life of pods.
func decide(v *view) verdict {
	d := &decider{view: v, spec: &v.pod.Template.Spec}
	d.collect()
	switch {
	case v.memory.Halt != nil:
		d.halting()
	case v.memory.Ended != "":
		// It stays for its status and logs until it is stopped.
	default:
		d.living()
	}
	d.tidy()
	return d.verdict
}

// runState is what a container is doing, as far as deciding goes.
type runState int

const (
	absent  runState = iota // never made, or made anew next
	made                    // created, not started
	running                 //
	exited                  // seen to have ended, or vanished
)

func (v *view) state(name string) runState {
	r := v.memory.Runs[name]
	if r == nil || r.ID == "" {
		return absent
	}
	if r.Ended != nil {
		return exited
	}
	s, found := v.seen[r.ID]
	switch {
	case !found || s.State == runtime.Exited:
		return exited
	case s.State == runtime.Running:
		return running
	}
	return made
}

// collect writes down the end of runs that nobody has written down yet.
func (d *decider) collect() {
	for _, name := range d.names() {
		if r := d.memory.Runs[name]; r != nil && r.ID != "" && r.Ended == nil && d.state(name) == exited {
			d.do(opCollect, name)
		}
	}
}

// names of all containers: the pause container, init containers, the others.
func (d *decider) names() []string { return containerNames(d.spec) }

func containerNames(s *corev1.PodSpec) []string {
	var names []string
	if sharesPID(s) {
		names = append(names, pauseName)
	}
	for i := range s.InitContainers {
		names = append(names, s.InitContainers[i].Name)
	}
	for i := range s.Containers {
		names = append(names, s.Containers[i].Name)
	}
	return names
}

func sharesPID(s *corev1.PodSpec) bool {
	return s.ShareProcessNamespace != nil && *s.ShareProcessNamespace && !s.HostPID
}

// living brings the pod up and keeps it up.
func (d *decider) living() {
	if len(d.actions) > 0 {
		return // first write down what ended
	}
	if s := d.spec.ActiveDeadlineSeconds; s != nil {
		deadline := d.memory.Started.Add(time.Duration(*s) * time.Second)
		if !d.now.Before(deadline) {
			d.actions = append(d.actions, action{
				op: opFail, reason: "DeadlineExceeded",
				message: "Pod was active on the node longer than the specified deadline",
			})
			return
		}
		d.at(deadline)
	}
	if d.resetting() {
		return
	}
	d.killing(nil)
	d.pulls()
	d.renewal()
	if images := d.volumeImages(); images && !d.mounted && !d.lacksToken && !d.busy[mountTask] && d.mayMount() {
		d.try(opMount, "")
	}
	if !d.attached {
		d.try(opAttach, "")
	}
	if !d.mounted || !d.attached || !d.pause() {
		return
	}
	d.resizing()
	if d.memory.Initialized || d.init() {
		d.mains()
	}
}

// mayMount reports whether volumes may be touched: those of a pod that waits
// for a lease may be another node's by now.
func (d *decider) mayMount() bool {
	return !d.unleased || slices.ContainsFunc(d.names(), func(name string) bool { return d.state(name) == running })
}

// try does something unless it went wrong a moment ago.
func (d *decider) try(o op, container string) bool {
	if t := d.notBefore[string(o)+container]; d.now.Before(t) {
		d.at(t)
		return false
	}
	d.do(o, container)
	return true
}

// renewal asks for service-account tokens in time.
func (d *decider) renewal() {
	switch {
	case d.tokenDue.IsZero() || d.busy[string(opToken)]:
	case d.now.Before(d.tokenDue):
		d.at(d.tokenDue)
	default:
		d.try(opToken, "")
	}
}

// pulls sees to every image that a container will still need.
func (d *decider) pulls() {
	want := func(c *corev1.Container, done bool) {
		if !done && !d.images[c.Name] && !d.busy["pull"+c.Name] && d.state(c.Name) != running {
			d.try(opPull, c.Name)
		}
	}
	for i := range d.spec.InitContainers {
		c := &d.spec.InitContainers[i]
		want(c, d.memory.Initialized && !spec.Sidecar(c))
	}
	for i := range d.spec.Containers {
		c := &d.spec.Containers[i]
		want(c, d.state(c.Name) == exited && !d.again(c))
	}
}

// pause sees to the container that holds a shared process namespace.
func (d *decider) pause() bool {
	if !sharesPID(d.spec) || d.state(pauseName) == running || d.through() {
		return true
	}
	if d.images[d.spec.Containers[0].Name] {
		d.start(pauseName)
	}
	return false
}

// start runs a container as soon as image and back-off allow.
func (d *decider) start(name string) {
	image := name
	if name == pauseName {
		image = d.spec.Containers[0].Name
	}
	if !d.images[image] || d.unleased {
		return
	}
	if r := d.memory.Runs[name]; r != nil {
		if at := r.next(); d.now.Before(at) {
			d.at(at)
			return
		}
	}
	d.try(opRun, name)
}

// init brings the init containers through, in order. It reports whether the
// others may start.
func (d *decider) init() bool {
	for i := range d.spec.InitContainers {
		c := &d.spec.InitContainers[i]
		if !d.initOne(c) {
			return false
		}
	}
	d.do(opInit, "")
	return true
}

func (d *decider) initOne(c *corev1.Container) bool {
	state, r := d.state(c.Name), d.memory.Runs[c.Name]
	if spec.Sidecar(c) {
		if state != running {
			d.start(c.Name)
			return false
		}
		return d.settled(c) && r.Started
	}
	switch {
	case state == running:
		return false
	case state == exited && r.Ended.ExitCode == 0:
		return true
	case state == exited && !d.again(c):
		d.actions = append(d.actions, action{
			op: opFail, message: "init container " + c.Name + " failed and is not to be restarted",
		})
		return false
	}
	d.start(c.Name)
	return false
}

// settled reports whether a running container is past its postStart hook, and
// begins it.
func (d *decider) settled(c *corev1.Container) bool {
	r := d.memory.Runs[c.Name]
	if !r.Hooked && r.Kill == nil && !d.busy["hook"+c.Name] {
		d.do(opPost, c.Name)
	}
	return r.Hooked
}

// mains keeps the pod's containers and its sidecars running, or ends the pod
// when they are through.
func (d *decider) mains() {
	if d.through() {
		d.ending()
		return
	}
	for i := range d.spec.InitContainers {
		c := &d.spec.InitContainers[i]
		if spec.Sidecar(c) {
			d.keep(c)
		}
	}
	for i := range d.spec.Containers {
		// A container starts only when those before it are past postStart.
		if !d.keep(&d.spec.Containers[i]) {
			return
		}
	}
}

// keep starts or restarts a container; it reports whether the next may start.
func (d *decider) keep(c *corev1.Container) bool {
	switch d.state(c.Name) {
	case running:
		return d.settled(c)
	case exited:
		if d.again(c) {
			d.start(c.Name)
		}
		return true
	}
	d.start(c.Name)
	hook := c.Lifecycle != nil && c.Lifecycle.PostStart != nil
	return !hook || !d.images[c.Name]
}

// again reports whether a container that ended is to run once more.
func (d *decider) again(c *corev1.Container) bool {
	code := unknownCode
	r := d.memory.Runs[c.Name]
	if r.Again {
		return true
	}
	if r.Ended != nil {
		code = r.Ended.ExitCode
	}
	return spec.Restarts(d.spec, c, code)
}

// unknownCode stands for that of a run whose end nobody has written down yet.
const unknownCode int32 = 137

// through reports whether every container has ended for good.
func (d *decider) through() bool {
	for i := range d.spec.Containers {
		c := &d.spec.Containers[i]
		if d.state(c.Name) != exited || d.again(c) {
			return false
		}
	}
	return true
}

// tidy deletes containers that a newer run has replaced, that belong to nothing
// we know, or that nobody needs any more.
func (d *decider) tidy() {
	if len(d.actions) > 0 {
		return // later, when nothing is waited for
	}
	current := map[string]bool{}
	for _, r := range d.memory.Runs {
		current[r.ID] = !d.shed
	}
	for id := range d.seen {
		if !current[id] {
			d.try(opDelete, id)
		}
	}
}
