package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

// pull sees beside the steps that a container's image is on the node.
func (m *Machine) pull(ctx context.Context, name string) {
	c := puller(&m.pod.Template.Spec, name)
	auths := m.context().PullAuths()
	known := m.known(name)
	m.spawn(ctx, "pull"+name, func(ctx context.Context) func() {
		began := m.now()
		image, pulled, err := m.fetch(ctx, c, known, auths)
		return func() { m.pulled(c, image, pulled, err, m.now().Sub(began)) }
	})
}

// fetch follows the container's pull policy; pulled tells that the registry was
// asked. A restart stays with the image that the pod's first run was made from
// while the node has it.
func (m *Machine) fetch(ctx context.Context, c *corev1.Container, known string, auths []runtime.Auth) (image runtime.Image, pulled bool, err error) {
	if known != "" {
		if image, err = m.runtime.Image(ctx, known); err == nil {
			return image, false, nil
		}
	}
	if c.ImagePullPolicy != corev1.PullAlways {
		image, err = m.runtime.Image(ctx, c.Image)
		if err == nil || !errors.Is(err, runtime.ErrNotFound) {
			return image, false, err
		}
		if c.ImagePullPolicy == corev1.PullNever {
			//lint:ignore ST1005 these are Kubernetes' words
			return image, false, &containerError{"ErrImageNeverPull", fmt.Errorf("Container image %q is not present with pull policy of Never", c.Image)}
		}
	}
	m.post(func() {
		if m.trouble[c.Name].reason == "" {
			m.trouble[c.Name] = trouble{"ContainerCreating", fmt.Sprintf("pulling image %q", c.Image)}
		}
		m.event(false, "Pulling", "Pulling image %q", c.Image)
	})
	image, err = m.runtime.Pull(ctx, c.Image, runtime.PullOptions{Auths: auths, Progress: m.progress(c)})
	return image, true, err
}

// progressFrom is how much of an image must have come before it is worth telling.
const progressFrom = 1 << 20

// progress shows how far a pull is, once a second at most.
func (m *Machine) progress(c *corev1.Container) func(done, total int64) {
	var last atomic.Int64
	return func(done, total int64) {
		if done < progressFrom {
			return
		}
		now := m.now().UnixMilli()
		if before := last.Load(); now-before < 1000 || !last.CompareAndSwap(before, now) {
			return
		}
		m.post(func() {
			if m.busy["pull"+c.Name] == nil || m.trouble[c.Name].reason != "ContainerCreating" {
				return
			}
			m.trouble[c.Name] = trouble{"ContainerCreating", fmt.Sprintf("pulling image %q: %.1f of %.1f MiB", c.Image, mib(done), mib(total))}
		})
	}
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

const (
	firstPullDelay = 10 * time.Second
	maxPullDelay   = 5 * time.Minute
)

func (m *Machine) pulled(c *corev1.Container, image runtime.Image, pulled bool, err error, took time.Duration) {
	what := string(opPull) + c.Name
	if err == nil {
		m.images[c.Name] = image
		m.keepImage(c.Name, image.ID)
		delete(m.trouble, c.Name)
		delete(m.retries, what)
		if pulled {
			m.node.pulled()
			m.event(false, "Pulled", "Successfully pulled image %q in %s", c.Image, took.Round(time.Millisecond))
		} else if r := m.memory.Runs[c.Name]; r == nil || r.Next == 0 {
			m.event(false, "Pulled", "Container image %q already present on machine", c.Image)
		}
		return
	}
	if errors.Is(err, context.Canceled) {
		return
	}
	if errors.Is(err, runtime.ErrUnavailable) {
		m.backOff(what, 200*time.Millisecond, 5*time.Second)
		return
	}
	m.pullFailed(c, what, err)
}

func (m *Machine) pullFailed(c *corev1.Container, what string, err error) {
	again := m.retries[what] != nil
	m.backOff(what, firstPullDelay, maxPullDelay)
	if t, ok := errors.AsType[*containerError](err); ok {
		m.trouble[c.Name] = trouble{t.reason, err.Error()}
		m.event(true, t.reason, "%s", err)
		return
	}
	m.event(true, "Failed", "Failed to pull image %q: %s", c.Image, err)
	if !again {
		m.trouble[c.Name] = trouble{"ErrImagePull", err.Error()}
		return
	}
	m.trouble[c.Name] = trouble{"ImagePullBackOff", fmt.Sprintf("Back-off pulling image %q: %s", c.Image, err)}
	m.event(false, "BackOff", "Back-off pulling image %q", c.Image)
}

// Images are the references of all images that assigned pods may still need.
func (a *Agent) Images() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.assignment == nil {
		return nil
	}
	needed := map[string]bool{}
	for _, p := range a.assignment.Pods {
		if w := a.pods[p.UID]; w != nil && ended(w.m.Status().Phase) {
			continue
		}
		for _, list := range [][]corev1.Container{p.Template.Spec.InitContainers, p.Template.Spec.Containers, imageVolumes(&p.Template.Spec)} {
			for i := range list {
				needed[list[i].Image] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(needed))
}

func ended(p nodes.Phase) bool { return p == corev1.PodSucceeded || p == corev1.PodFailed }
