//go:build corpus

package stacks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/test/machine"
)

// world is the one machine on which all stacks run, one after the other, each
// with a data directory of its own.
type world struct {
	*machine.Machine
	t          testing.TB
	registries string
}

// step is something that a stack must pass, and its name in the results.
type step struct {
	name string
	do   func() error
}

func (w *world) run(s *Stack) Result {
	began := time.Now()
	r := w.try(s)
	r.Took = time.Since(began).Round(100 * time.Millisecond)
	return r
}

func (w *world) try(s *Stack) Result {
	before := missingHostPaths(s)
	w.Up("--capacity", Capacity, "--registry-config", w.registries)
	defer func() {
		w.Stop()
		if r := w.TallyRaw("reset", "--data-dir", w.DataDir, "--run-dir", w.RunDir, "--containerd", w.Containerd.Address); r.Code != 0 {
			w.t.Errorf("%s: tally reset: %s", s.Name, r.Err)
		}
		for _, path := range append(before, w.DataDir) {
			if err := os.RemoveAll(path); err != nil {
				w.t.Error(err)
			}
		}
	}()
	c := w.Clone()
	for i := range s.Revisions {
		if err := w.push(c, s, i); err != nil {
			return w.failed(s, i, "push", err)
		}
		if err := w.converge(c.Git("rev-parse", "HEAD"), patience(s)); err != nil {
			return w.failed(s, i, "converge", err)
		}
	}
	for _, step := range []step{
		{"services", func() error { return w.services(s) }},
		{"second look", func() error { return w.secondLook(c) }},
		{"removal", func() error { return w.remove(c) }},
	} {
		if err := step.do(); err != nil {
			return w.failed(s, len(s.Revisions)-1, step.name, err)
		}
	}
	return Result{Name: s.Name}
}

// stuck is the error of a stack whose objects do not all become ready.
type stuck struct {
	reason  string
	objects []desired.Key
}

func (s *stuck) Error() string { return s.reason }

func (w *world) failed(s *Stack, revision int, at string, err error) Result {
	r := Result{Name: s.Name, Failed: at, Reason: strings.Join(strings.Fields(err.Error()), " ")}
	var not *stuck
	if errors.As(err, &not) && at == "converge" || at == "push" {
		r.Kubernetes = s.Excuse(revision, not.list(), w.profiles())
	}
	return r
}

// list is that of the objects that are not ready, none of nobody.
func (s *stuck) list() []desired.Key {
	if s == nil {
		return nil
	}
	return s.objects
}

// profiles are those that the machine has.
func (w *world) profiles() Profiles {
	var p Profiles
	if loaded, err := os.ReadFile("/sys/kernel/security/apparmor/profiles"); err == nil {
		p.AppArmor = []string{}
		for line := range strings.Lines(string(loaded)) {
			name, _, _ := strings.Cut(line, " (")
			p.AppArmor = append(p.AppArmor, name)
		}
	}
	dir := filepath.Join(w.DataDir, "agent", "seccomp")
	_ = filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error { // no such folder: no profiles
		if name, bad := filepath.Rel(dir, path); err == nil && bad == nil {
			p.Seccomp = append(p.Seccomp, name)
		}
		return nil
	})
	return p
}

// push commits one revision of the stack, its files as they are, and pushes it.
func (w *world) push(c *machine.Clone, s *Stack, revision int) error {
	if err := clear(c); err != nil {
		return err
	}
	if err := s.Copy(c.Dir, s.Revisions[revision]); err != nil {
		return err
	}
	err := w.commit(c, s.Name)
	if err != nil && s.Refused != nil {
		return errors.New(s.Refused.String())
	}
	return err
}

// commit pushes what the clone has, confirmed to the guard where that asks.
func (w *world) commit(c *machine.Clone, message string) error {
	sha := c.Commit(message)
	held, err := w.pushed(c, sha)
	if err != nil || held == nil {
		return err
	}
	held, err = w.pushed(c, c.Commit(message+"\n\n"+held.Confirm))
	if err == nil && held != nil {
		return errors.New("held although confirmed: " + held.Why)
	}
	return err
}

// pushed pushes and waits until the revision is in force or held.
func (w *world) pushed(c *machine.Clone, sha string) (*nodes.Hold, error) {
	if r := c.Push("-o", "tally.wait=false"); r.Code != 0 {
		return nil, errors.New(r.Err)
	}
	end := time.Now().Add(settled)
	for {
		o, err := w.Overview()
		switch {
		case err != nil:
			return nil, err
		case o.InForce != nil && o.InForce.SHA == sha:
			return nil, nil
		case o.Held != nil && o.Held.Revision.SHA == sha:
			return o.Held, nil
		case time.Now().After(end):
			return nil, errors.New("neither in force nor held: " + o.Sync.State + " " + o.Sync.Message)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// clear takes all files out of a clone.
func clear(c *machine.Clone) error {
	entries, err := os.ReadDir(c.Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != ".git" {
			if err := os.RemoveAll(filepath.Join(c.Dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// patience is how long a stack may take: longer where its own manifests demand it.
func patience(s *Stack) time.Duration {
	longest := int32(0)
	if last := s.Last(); last != nil {
		for _, t := range templates(last) {
			for i := range t.spec.Containers {
				c := &t.spec.Containers[i]
				delay := int32(0)
				for _, p := range []*corev1.Probe{c.ReadinessProbe, c.StartupProbe} {
					if p != nil {
						delay += p.InitialDelaySeconds + p.PeriodSeconds*max(1, p.SuccessThreshold)
					}
				}
				longest = max(longest, delay)
			}
		}
		for _, o := range last.Kind("StatefulSet") {
			if v, ok := o.Value.(*appsv1.StatefulSet); ok && v.Spec.Replicas != nil {
				longest *= max(1, *v.Spec.Replicas) // one after the other
			}
		}
	}
	return 2*time.Minute + time.Duration(min(longest, 300))*time.Second
}

// settled is how long nothing but one and the same reason must have been said
// before it counts as final.
const settled = 15 * time.Second

// final are reasons that do not go away by themselves.
var final = []string{
	"FailedScheduling", "CreateContainerConfigError", "RunContainerError", "InvalidImageName", "ErrImagePull", "ImagePullBackOff",
	"FailedMount", "CrashLoopBackOff", "FailedCreatePodSandBox", "CreateContainerError",
}

func (w *world) converge(sha string, patience time.Duration) error {
	var said string
	var since time.Time
	end := time.Now().Add(patience)
	for {
		o, err := w.Overview()
		if err != nil {
			return err
		}
		if o.InForce != nil && o.InForce.SHA == sha && o.Plan.Converged {
			return nil
		}
		if reason := waiting(o); reason != said {
			said, since = reason, time.Now()
		}
		hopeless := time.Since(since) > settled && slices.ContainsFunc(final, func(f string) bool { return strings.Contains(said, f) })
		if time.Now().After(end) || hopeless {
			e := &stuck{reason: said}
			for _, i := range o.Plan.Waiting {
				e.objects = append(e.objects, i.Object)
			}
			return e
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// waiting says what a cluster waits for, the first few.
func waiting(o *nodes.Overview) string {
	var reasons []string
	for _, i := range o.Plan.Waiting {
		reasons = append(reasons, i.Object.String()+": "+i.Reason)
	}
	if len(reasons) > 3 {
		reasons = append(reasons[:3], fmt.Sprintf("and %d more", len(reasons)-3))
	}
	if len(reasons) == 0 {
		return "not in force yet: " + o.Sync.State + " " + o.Sync.Message
	}
	return strings.Join(reasons, "; ")
}

// secondLook pushes the same content again, which must change nothing.
func (w *world) secondLook(c *machine.Clone) error {
	sha := c.Commit("the same again")
	r := c.Push()
	if r.Code != 0 {
		return errors.New(r.Err)
	}
	if !strings.Contains(r.Err, "nothing changes") {
		return errors.New("the plan is not empty: " + r.Err)
	}
	return w.converge(sha, settled)
}

// services has every service with ready endpoints answer through its address
// and its name.
func (w *world) services(s *Stack) error {
	o, err := w.Overview()
	if err != nil {
		return err
	}
	var failures []error
	for _, v := range o.Services {
		if object := s.Last().Get(v.Key); object == nil || !selects(object) {
			continue
		}
		for _, p := range v.Ports {
			if len(p.Endpoints) == 0 {
				if len(selected(s, v.Key)) > 0 && p.NotReady > 0 {
					failures = append(failures, fmt.Errorf("%s port %d has no ready endpoint", v.Key, p.Port))
				}
				continue
			}
			if err := eventually(func() error { return answers(v, p) }); err != nil {
				failures = append(failures, fmt.Errorf("%s port %d: %w", v.Key, p.Port, err))
			}
		}
	}
	return errors.Join(failures...)
}

// eventually gives programs without a readiness probe the time to listen.
func eventually(try func() error) error {
	end := time.Now().Add(settled)
	for {
		err := try()
		if err == nil || time.Now().After(end) {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// selected are the pods of the stack that a service selects.
func selected(s *Stack, k desired.Key) []template {
	var found []template
	for _, t := range templates(s.Last()) {
		if slices.ContainsFunc(services(s.Last(), t), func(v *corev1.Service) bool { return v.Name == k.Name && k.Namespace == t.namespace }) {
			found = append(found, t)
		}
	}
	return found
}

func selects(o *desired.Object) bool {
	v, ok := o.Value.(*corev1.Service)
	return ok && len(v.Spec.Selector) > 0
}

// answers asks one port of a service, at every address that its name has.
func answers(v nodes.ServiceOverview, p nodes.ServicePort) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	name := fmt.Sprintf("%s.%s.svc.cluster.local", v.Key.Name, v.Key.Namespace)
	addresses, err := resolver.LookupHost(ctx, name)
	if err != nil {
		return err
	}
	if len(v.ClusterIPs) > 0 && v.ClusterIPs[0] != "None" {
		if !slices.Equal(addresses, v.ClusterIPs) {
			return fmt.Errorf("%s is %v, not %v", name, addresses, v.ClusterIPs)
		}
		return ask(ctx, p.Protocol, net.JoinHostPort(addresses[0], strconv.Itoa(int(p.Port))))
	}
	for _, endpoint := range p.Endpoints {
		host, _, err := net.SplitHostPort(endpoint)
		if err != nil {
			return err
		}
		if !slices.Contains(addresses, host) {
			return fmt.Errorf("%s is %v, without endpoint %s", name, addresses, host)
		}
		if err := ask(ctx, p.Protocol, endpoint); err != nil {
			return err
		}
	}
	return nil
}

// resolver asks the DNS that pods ask: the node's, at the pods' gateway.
var resolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, network, "10.244.0.1:53")
}}

// ask connects to a stub and gets something back.
func ask(ctx context.Context, protocol, address string) error {
	network, question := "tcp", "GET / HTTP/1.0\r\n\r\n"
	if protocol == string(corev1.ProtocolUDP) {
		network = "udp"
	}
	c, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, question); err != nil {
		return err
	}
	if _, err := c.Read(make([]byte, 1)); err != nil {
		return fmt.Errorf("no answer from %s: %w", address, err)
	}
	return nil
}

// remove takes everything out of Git, confirmed to the guard where it asks, and
// waits until nothing of it is left.
func (w *world) remove(c *machine.Clone) error {
	if err := clear(c); err != nil {
		return err
	}
	if err := w.commit(c, "remove everything"); err != nil {
		return err
	}
	if err := w.converge(c.Git("rev-parse", "HEAD"), time.Minute+30*time.Second); err != nil {
		return err
	}
	o, err := w.Overview()
	if err != nil {
		return err
	}
	for _, object := range o.Objects {
		if object.Pod != nil {
			return fmt.Errorf("%s is still there", object.Key)
		}
	}
	return nil
}
