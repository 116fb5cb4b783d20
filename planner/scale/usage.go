package scale

import (
	"errors"
	"fmt"
	"math"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	resourcehelpers "k8s.io/component-helpers/resource"

	"github.com/tallyman-dev/tallyman/nodes"
)

// measured is what one pod uses, in thousandths, and how it was found.
type measured struct {
	value  int64
	at     time.Time
	window time.Duration
}

// groups are the pods of a target by what is known of them. Pods that leave or
// have failed are in none.
type groups struct {
	// known have a value that counts; unready ones would if they were ready;
	// missing ones should have a value and don't.
	known            map[string]int64
	unready, missing []string
}

// group sorts the pods. Only for cpu does it matter when a value was measured:
// a program that starts uses more than one that serves.
func (in *Input) group(values map[string]measured, cpu bool) groups {
	g := groups{known: map[string]int64{}}
	for i := range in.Pods {
		p := &in.Pods[i]
		value, found := values[p.Name]
		switch {
		case p.Leaving || p.Phase == corev1.PodFailed:
		case p.Phase == corev1.PodPending || p.Phase == "":
			g.unready = append(g.unready, p.Name)
		case !found:
			g.missing = append(g.missing, p.Name)
		case cpu && in.unready(p, value):
			g.unready = append(g.unready, p.Name)
		default:
			g.known[p.Name] = value.value
		}
	}
	return g
}

// unready reports whether a pod's cpu says nothing about how it serves.
func (in *Input) unready(p *Pod, v measured) bool {
	if p.Started.IsZero() {
		return true
	}
	if p.Started.Add(initialization).After(in.Now) {
		return !p.Ready || v.at.Before(p.ReadySince.Add(v.window))
	}
	return !p.Ready && p.Started.Add(readinessDelay).After(p.ReadySince)
}

var errNoMetrics = errors.New("did not receive metrics for targeted pods (pods might be unready)")

// resource proposes by what the pods' containers use.
func (in *Input) resource(name corev1.ResourceName, container string, target *autoscalingv2.MetricTarget) (proposal, error) {
	values := map[string]measured{}
	for i := range in.Pods {
		if v, ok := usageOf(&in.Pods[i], name, container, in.Now); ok {
			values[in.Pods[i].Name] = v
		}
	}
	g := in.group(values, name == corev1.ResourceCPU)
	if target.AverageValue != nil {
		return in.propose(g, average(target.AverageValue.MilliValue()))
	}
	if target.AverageUtilization == nil {
		return proposal{}, errors.New("neither an average utilization target nor an average value target was set")
	}
	if len(g.known) == 0 {
		return proposal{}, errNoMetrics
	}
	requests, err := in.requests(name, container)
	if err != nil {
		return proposal{}, err
	}
	return in.propose(g, &share{requests: requests, target: int64(*target.AverageUtilization)})
}

// usageOf is what a pod, or one container of it, uses of a resource.
func usageOf(p *Pod, name corev1.ResourceName, container string, now time.Time) (measured, bool) {
	if p.Usage == nil || now.Sub(p.Usage.At) > stale {
		return measured{}, false
	}
	total, found := int64(0), false
	for _, c := range p.Usage.Containers {
		if container == "" || c.Name == container {
			total, found = total+amount(c, name), true
		}
	}
	return measured{total, p.Usage.At, p.Usage.Window}, found
}

// amount in thousandths of a core or byte, rounded up as Kubernetes does.
func amount(c nodes.ContainerUsage, name corev1.ResourceName) int64 {
	if name == corev1.ResourceCPU {
		return (c.CPU + 999_999) / 1_000_000
	}
	return c.Memory * 1000
}

// requests of every pod in thousandths; an error names the first pod that has
// none, for a share of nothing means nothing.
func (in *Input) requests(name corev1.ResourceName, container string) (map[string]int64, error) {
	all := make(map[string]int64, len(in.Pods))
	for i := range in.Pods {
		p := &in.Pods[i]
		request, err := requestOf(p, name, container)
		if err != nil {
			return nil, err
		}
		all[p.Name] = request
	}
	return all, nil
}

func requestOf(p *Pod, name corev1.ResourceName, container string) (int64, error) {
	pod := &corev1.Pod{Spec: *p.Spec}
	if container == "" && resourcehelpers.IsPodLevelRequestsSet(pod) {
		total, ok := resourcehelpers.PodRequests(pod, resourcehelpers.PodResourcesOptions{})[name]
		if !ok {
			return 0, fmt.Errorf("missing pod-level request for %s in Pod %s", name, p.Name)
		}
		return total.MilliValue(), nil
	}
	sum, found := int64(0), container == ""
	for _, c := range lasting(p.Spec) {
		if container != "" && c.Name != container {
			continue
		}
		request, ok := c.Resources.Requests[name]
		if !ok {
			return 0, fmt.Errorf("missing request for %s in container %s of Pod %s", name, c.Name, p.Name)
		}
		sum, found = sum+request.MilliValue(), true
	}
	if !found {
		return 0, fmt.Errorf("container %s not found in Pod %s", container, p.Name)
	}
	return sum, nil
}

// lasting are the containers that run as long as the pod: sidecars too.
func lasting(spec *corev1.PodSpec) []corev1.Container {
	all := append([]corev1.Container{}, spec.Containers...)
	for _, c := range spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			all = append(all, c)
		}
	}
	return all
}

// yardstick is what usage is measured against.
type yardstick interface {
	// ratio of usage to target over these pods.
	ratio(values map[string]int64) (float64, error)
	// full is what is assumed of a pod without a measurement when others use
	// less than their target.
	full(pod string) int64
}

// average is a target for each pod, in thousandths.
type average int64

func (a average) full(string) int64 { return int64(a) }

func (a average) ratio(values map[string]int64) (float64, error) {
	total := int64(0)
	for _, v := range values {
		total += v
	}
	return float64(total/int64(len(values))) / float64(a), nil
}

// share is a target as a percentage of what pods request.
type share struct {
	requests map[string]int64
	target   int64
}

func (s *share) full(pod string) int64 { return s.requests[pod] * max(100, s.target) / 100 }

func (s *share) ratio(values map[string]int64) (float64, error) {
	used, requested := int64(0), int64(0)
	for pod, v := range values {
		used, requested = used+v, requested+s.requests[pod]
	}
	if requested == 0 {
		return 0, errors.New("no metrics returned matched known pods")
	}
	return float64(int32(used*100/requested)) / float64(s.target), nil
}

// propose turns usage into a number of replicas. What is not known is assumed
// so that it dampens: pods without a measurement use all of their target when
// the others would go down, nothing when they would go up; unready ones nothing
// when the others would go up.
func (in *Input) propose(g groups, by yardstick) (proposal, error) {
	if len(g.known) == 0 {
		return proposal{}, errNoMetrics
	}
	within := tolerancesOf(in.Object.Spec.Behavior).within
	ratio, err := by.ratio(g.known)
	if err != nil {
		return proposal{}, err
	}
	upWithUnready := len(g.unready) > 0 && ratio > 1
	if !upWithUnready && len(g.missing) == 0 {
		if within(ratio) {
			return proposal{in.Replicas, ratio}, nil
		}
		return proposal{ceil(ratio * float64(len(g.known))), ratio}, nil
	}
	for _, pod := range g.missing {
		switch {
		case ratio < 1:
			g.known[pod] = by.full(pod)
		case ratio > 1:
			g.known[pod] = 0
		}
	}
	if upWithUnready {
		for _, pod := range g.unready {
			g.known[pod] = 0
		}
	}
	damped, err := by.ratio(g.known)
	if err != nil {
		return proposal{}, err
	}
	if within(damped) || ratio < 1 && damped > 1 || ratio > 1 && damped < 1 {
		return proposal{in.Replicas, ratio}, nil
	}
	wanted := ceil(damped * float64(len(g.known)))
	if damped < 1 && wanted > in.Replicas || damped > 1 && wanted < in.Replicas {
		return proposal{in.Replicas, ratio}, nil
	}
	return proposal{wanted, ratio}, nil
}

// ceil rounds up to a number of replicas that an object can have.
func ceil(v float64) int32 {
	if v >= math.MaxInt32 {
		return math.MaxInt32
	}
	return int32(math.Ceil(v))
}
