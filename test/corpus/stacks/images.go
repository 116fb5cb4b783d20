package stacks

import (
	"cmp"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/distribution/reference"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/test/corpus/stacks/plan"
)

// Image is what all stacks together ask of one image.
type Image struct {
	// Name is repository and tag, without the registry: a mirror has one
	// namespace for all registries. For an image that is named by digest, Name
	// has the digest's first letters as its tag.
	Name string
	// Pinned are the references by digest; nobody can serve anything else under
	// a digest, so the node must have the image beforehand.
	Pinned []string
	Plan   plan.Plan
	// Links are the paths by which manifests call its programs, sorted.
	Links []string
	// User is set where a manifest relies on the image not running as root.
	User string
}

// usual programs that scripts, probes and hooks call by name.
var usual = []string{
	"sh", "bash", "ash", "sleep", "cat", "true", "echo", "test", "[", "ls", "env", "date", "grep", "touch", "kill", "nslookup", "ping",
	"wget", "curl", "nc", "pg_isready", "redis-cli", "redis-server", "mysql", "mysqladmin", "mongo", "mongosh", "nginx", "python", "python3",
	"node", "java", "perl", "kubectl", "rabbitmqctl", "rabbitmq-diagnostics", "nodetool",
}

// Images collects what the images of all stacks must be able to do. Stacks
// whose manifests are refused have none.
func Images(all []*Stack) []*Image {
	c := collector{images: map[string]*Image{}, forever: map[string]map[string]bool{}}
	for _, s := range all {
		for _, snapshot := range s.Snapshots {
			for _, t := range templates(snapshot) {
				c.template(t, services(snapshot, t))
			}
		}
	}
	return c.finish()
}

// services that select the pods of a template.
func services(s *desired.Snapshot, t template) []*corev1.Service {
	var found []*corev1.Service
	for _, o := range s.Kind("Service") {
		v, ok := o.Value.(*corev1.Service)
		if ok && o.Key.Namespace == t.namespace && len(v.Spec.Selector) > 0 && labels.SelectorFromSet(v.Spec.Selector).Matches(labels.Set(t.labels)) {
			found = append(found, v)
		}
	}
	return found
}

// Mirrored is the name under which a mirror has an image; empty for an invalid
// one.
func Mirrored(image string) string {
	named, err := reference.ParseDockerRef(image)
	if err != nil {
		return ""
	}
	switch v := named.(type) {
	case reference.Digested:
		return reference.Path(named) + ":pinned-" + v.Digest().Encoded()[:12]
	case reference.Tagged:
		return reference.Path(named) + ":" + v.Tag()
	default:
		return ""
	}
}

type collector struct {
	images map[string]*Image
	// forever has, by image, the command lines that somewhere must not end.
	forever map[string]map[string]bool
}

func (c *collector) image(written string) *Image {
	name := Mirrored(written)
	if c.images[name] == nil {
		c.images[name] = &Image{Name: name}
		c.forever[name] = map[string]bool{}
	}
	i := c.images[name]
	if strings.Contains(written, "@") && !slices.Contains(i.Pinned, written) {
		i.Pinned = append(i.Pinned, written)
	}
	return i
}

func (c *collector) template(t template, services []*corev1.Service) {
	c.gifts(t.spec)
	for i := range t.spec.InitContainers {
		v := &t.spec.InitContainers[i]
		sidecar := v.RestartPolicy != nil && *v.RestartPolicy == corev1.ContainerRestartPolicyAlways
		c.container(v, t, end(!sidecar))
	}
	for i := range t.spec.Containers {
		c.container(&t.spec.Containers[i], t, t.end(len(services) > 0))
	}
	for _, s := range services {
		for _, p := range s.Spec.Ports {
			c.target(t.spec, s, p)
		}
	}
}

// gifts has init containers put into their volumes what containers run from there.
func (c *collector) gifts(spec *corev1.PodSpec) {
	for i := range spec.Containers {
		v := &spec.Containers[i]
		if len(v.Command) == 0 {
			continue
		}
		for _, m := range v.VolumeMounts {
			name, below := strings.CutPrefix(v.Command[0], strings.TrimSuffix(m.MountPath, "/")+"/")
			if below && m.SubPath == "" && m.SubPathExpr == "" {
				c.gift(spec.InitContainers, m.Name, name)
			}
		}
	}
}

func (c *collector) gift(from []corev1.Container, volume, name string) {
	for i := range from {
		for _, m := range from[i].VolumeMounts {
			if m.Name == volume && !m.ReadOnly {
				given := &c.image(from[i].Image).Plan.Gives
				*given = append(*given, path.Join(m.MountPath, name))
			}
		}
	}
}

// target has somebody listen where a service leads to. Manifests need not say
// which container that is: where none names the port, the first does.
func (c *collector) target(spec *corev1.PodSpec, s *corev1.Service, p corev1.ServicePort) {
	to := p.TargetPort
	if to.Type == intstr.String || len(spec.Containers) == 0 {
		return // a named port is a containerPort already
	}
	number := cmp.Or(int(to.IntVal), int(p.Port))
	for i := range spec.Containers {
		for _, own := range spec.Containers[i].Ports {
			if int(own.ContainerPort) == number {
				c.image(spec.Containers[i].Image).listen(p.Protocol, number)
				return
			}
		}
	}
	c.image(spec.Containers[0].Image).listen(p.Protocol, number)
}

func (i *Image) listen(protocol corev1.Protocol, port int) {
	switch {
	case port <= 0:
	case protocol == corev1.ProtocolUDP:
		i.Plan.UDP = append(i.Plan.UDP, port)
	default:
		i.Plan.TCP = append(i.Plan.TCP, port)
	}
}

// ending says whether a container's process must end by itself.
type ending int

const (
	mustEnd ending = iota
	mustNotEnd
	// mayEnd is that of a pod which is not started again, and which nobody asks.
	mayEnd
)

func end(must bool) ending {
	if must {
		return mustEnd
	}
	return mustNotEnd
}

// end is that of the template's containers; served tells of services for it.
func (t template) end(served bool) ending {
	if !t.ends && !served && t.spec.RestartPolicy != corev1.RestartPolicyAlways {
		return mayEnd
	}
	return end(t.ends)
}

func (c *collector) container(v *corev1.Container, t template, ends ending) {
	i := c.image(v.Image)
	for _, p := range v.Ports {
		i.listen(p.Protocol, int(p.ContainerPort))
	}
	for _, p := range []*corev1.Probe{v.LivenessProbe, v.ReadinessProbe, v.StartupProbe} {
		if p != nil {
			i.handler(&corev1.LifecycleHandler{Exec: p.Exec, HTTPGet: p.HTTPGet, TCPSocket: p.TCPSocket}, v.WorkingDir)
			if p.GRPC != nil {
				i.listen(corev1.ProtocolTCP, int(p.GRPC.Port))
			}
		}
	}
	if v.Lifecycle != nil {
		i.handler(v.Lifecycle.PostStart, v.WorkingDir)
		i.handler(v.Lifecycle.PreStop, v.WorkingDir)
	}
	if len(v.Command) > 0 {
		i.link(v.Command[0], v.WorkingDir)
	}
	if notRoot(v, t.spec) {
		i.User = "65532"
	}
	c.commandLine(i, v, t, ends)
}

// commandLine notes whether a container's process must end by itself.
func (c *collector) commandLine(i *Image, v *corev1.Container, t template, ends ending) {
	line := append(slices.Clone(v.Command), v.Args...)
	if len(v.Command) == 0 {
		line = append([]string{plan.Program}, v.Args...)
	}
	switch ends {
	case mustEnd:
		o := plan.Once{Line: line}
		if t.owner.Kind == "Job" {
			o.Jobs = []string{t.owner.Name}
		}
		i.Plan.Once = append(i.Plan.Once, o)
	case mustNotEnd:
		c.forever[i.Name][strings.Join(line, "\x00")] = true
	}
}

// once sorts what an image's command lines are to do. One that in some pods must
// end and in others must not ends in those of Jobs, which their names tell; what
// has no such name goes on.
func once(all []plan.Once, forever map[string]bool) []plan.Once {
	var lines []plan.Once
	slices.SortStableFunc(all, func(a, b plan.Once) int { return slices.Compare(a.Line, b.Line) })
	for _, o := range all {
		stays := forever[strings.Join(o.Line, "\x00")]
		switch last := len(lines) - 1; {
		case stays && len(o.Jobs) == 0:
		case last >= 0 && slices.Equal(lines[last].Line, o.Line):
			if stays {
				lines[last].Jobs = append(lines[last].Jobs, o.Jobs...)
			}
		case stays:
			lines = append(lines, o)
		default:
			lines = append(lines, plan.Once{Line: o.Line})
		}
	}
	return lines
}

func (i *Image) handler(h *corev1.LifecycleHandler, dir string) {
	switch {
	case h == nil:
	case h.Exec != nil && len(h.Exec.Command) > 0:
		i.link(h.Exec.Command[0], dir)
	case h.HTTPGet != nil:
		i.listen(corev1.ProtocolTCP, h.HTTPGet.Port.IntValue())
	case h.TCPSocket != nil:
		i.listen(corev1.ProtocolTCP, h.TCPSocket.Port.IntValue())
	}
}

// link makes a program callable as a manifest calls it.
func (i *Image) link(command, dir string) {
	switch {
	case strings.Contains(command, "$("):
		return
	case path.IsAbs(command):
		i.Links = append(i.Links, path.Clean(command))
	case strings.Contains(command, "/"):
		i.Links = append(i.Links, path.Join("/", dir, command))
	default:
		i.Links = append(i.Links, path.Join("/bin", command))
	}
}

// notRoot reports whether a container may not run as root and leaves it to the
// image to say as whom it runs.
func notRoot(v *corev1.Container, spec *corev1.PodSpec) bool {
	pod, own := spec.SecurityContext, v.SecurityContext
	demanded, user := false, false
	if pod != nil {
		demanded, user = pod.RunAsNonRoot != nil && *pod.RunAsNonRoot, pod.RunAsUser != nil
	}
	if own != nil {
		if own.RunAsNonRoot != nil {
			demanded = *own.RunAsNonRoot
		}
		user = user || own.RunAsUser != nil
	}
	return demanded && !user
}

func (c *collector) finish() []*Image {
	var all []*Image
	delete(c.images, "")
	for _, name := range slices.Sorted(maps.Keys(c.images)) {
		i := c.images[name]
		slices.Sort(i.Plan.TCP)
		slices.Sort(i.Plan.UDP)
		i.Plan.TCP, i.Plan.UDP = slices.Compact(i.Plan.TCP), slices.Compact(i.Plan.UDP)
		slices.Sort(i.Plan.Gives)
		i.Plan.Gives = slices.Compact(i.Plan.Gives)
		i.Plan.Once = once(i.Plan.Once, c.forever[name])
		for _, u := range usual {
			i.link(u, "")
		}
		i.link("/usr/bin/env", "")
		slices.Sort(i.Links)
		i.Links = slices.Compact(i.Links)
		all = append(all, i)
	}
	return all
}
