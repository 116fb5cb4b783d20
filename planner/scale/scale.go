// Package scale holds the rules of a HorizontalPodAutoscaler: from what the
// pods of its target use, how many there should be.
//
// The rules are those of Kubernetes' autoscaling/v2: which pods count, what is
// assumed of pods without a measurement, tolerance, the highest of several
// metrics, policies and stabilisation windows. They know no clock and keep
// nothing: what must be remembered is a Memory that the caller keeps.
// Guarantees: an advice is never outside of the bounds, except that a target
// that Git sets to no replicas at all stays so; without a valid metric nothing
// is ever scaled down.
package scale

import (
	"fmt"
	"slices"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
)

const (
	// tolerance is by how much a metric may miss its target before anything is
	// done, where the object says nothing else.
	tolerance = 0.1
	// downWindow is for how long the highest recent recommendation holds against
	// scaling down, where the object says nothing else.
	downWindow = 5 * time.Minute
	// initialization is how long after its start a pod's cpu says little: only
	// measurements taken wholly while it was ready count.
	initialization = 5 * time.Minute
	// readinessDelay is within what time of its start a pod's last change of
	// readiness tells that it has never been ready.
	readinessDelay = 30 * time.Second
	// stale is the age from which a measurement is none.
	stale = time.Minute
	// Interval is the least time between two changes of one target's size.
	Interval = 15 * time.Second
)

// Pod of the target.
type Pod struct {
	Name  string
	Phase nodes.Phase
	// Leaving pods, and failed ones, don't count.
	Leaving bool
	Ready   bool
	// ReadySince is when Ready last changed, Started when the pod was started;
	// zero when it was not.
	ReadySince, Started time.Time
	Spec                *corev1.PodSpec
	// Usage is nil when it was not measured.
	Usage *nodes.Usage
}

// Series is one time series of a query's answer.
type Series struct {
	Labels map[string]string `json:"labels"`
	Value  float64           `json:"value"`
}

// Sample is what a metrics' source answered to a query.
type Sample struct {
	Query  string    `json:"query"`
	At     time.Time `json:"at"`
	Series []Series  `json:"series"`
	// Problem says in one sentence why there is no answer; empty when there is.
	Problem string `json:"problem,omitempty"`
}

// Input is what an advice is made from.
type Input struct {
	Now    time.Time
	Object *autoscalingv2.HorizontalPodAutoscaler
	// Replicas that the target is to have at present.
	Replicas int32
	Pods     []Pod
	// Sample gives the newest answer to a metric's query, or a reason why there
	// is none. Only asked for metrics of type Pods, Object and External.
	Sample func(m *autoscalingv2.MetricSpec) (Sample, error)
	Memory Memory
}

// Advice is how many replicas the target should have.
type Advice struct {
	Replicas int32
	// Reason says why Replicas differ from the present number.
	Reason string
	// Metric names the metric that decided; empty when none did.
	Metric string
	// Problem says why metrics cannot be judged (ScalingActive is false);
	// Unable and Limited say what kept the advice from the recommendation. Words
	// and sentences are Kubernetes' conditions.
	Problem, Unable, Limited Condition
	// Readings are the metrics as they were found, in the order of the object;
	// nil when they were not looked at.
	Readings []Reading
	// Memory to give with the next Input.
	Memory Memory
}

// Reading is the value of one metric and what it should be, as people write
// them: "45%", "1500m".
type Reading struct {
	Metric string
	// Current is empty when there is no value.
	Current, Target string
}

// Condition is a word and a sentence; zero when there is nothing to say.
type Condition struct {
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
}

// String gives "Reason: message"; empty for nothing.
func (c Condition) String() string {
	if c.Reason == "" {
		return ""
	}
	return c.Reason + ": " + c.Message
}

// MinReplicas is 1 where the object says nothing.
func MinReplicas(o *autoscalingv2.HorizontalPodAutoscaler) int32 {
	if o.Spec.MinReplicas == nil {
		return 1
	}
	return *o.Spec.MinReplicas
}

// Advise says how many replicas the target should have now.
func Advise(in Input) Advice {
	out := Advice{Replicas: in.Replicas, Memory: in.Memory.clone()}
	out.Memory.begin(in.Now, in.Replicas)
	low, high := MinReplicas(in.Object), in.Object.Spec.MaxReplicas
	switch {
	case in.Replicas == 0:
		out.Problem = Condition{"ScalingDisabled", "scaling is disabled since the replica count of the target is zero"}
	case in.Replicas > high:
		out.Replicas, out.Reason = high, "Current number of replicas above Spec.MaxReplicas"
	case in.Replicas < low:
		out.Replicas, out.Reason = low, "Current number of replicas below Spec.MinReplicas"
	default:
		in.judge(&out)
	}
	if out.Replicas != in.Replicas {
		out.Memory.scaled(in.Now, in.Replicas, out.Replicas)
	}
	out.Memory.trim(in.Now, in.Object.Spec.Behavior)
	return out
}

// judge follows the metrics.
func (in *Input) judge(out *Advice) {
	wanted, metric, problem := in.metrics(&out.Readings)
	out.Problem = problem
	if metric == "" {
		return
	}
	out.Metric = metric
	steady := out.Memory.stabilize(in, wanted)
	if steady != wanted {
		out.Unable = stabilized(wanted, in.Replicas)
	}
	allowed, limited := out.Memory.limit(in, steady)
	if allowed != steady {
		out.Limited = limited
	}
	if allowed == in.Replicas {
		return
	}
	if wait := Interval - in.Now.Sub(out.Memory.Last); wait > 0 && !out.Memory.Last.IsZero() {
		return
	}
	out.Replicas, out.Reason = allowed, "All metrics below target"
	if allowed > in.Replicas {
		out.Reason = metric + " above target"
	}
}

// metrics gives the highest proposal. A metric that cannot be judged may hide a
// need for more: then nothing is scaled down, and metric is empty.
func (in *Input) metrics(readings *[]Reading) (wanted int32, metric string, problem Condition) {
	specs := in.Object.Spec.Metrics
	failures := 0
	for i := range specs {
		proposal, name, err := in.metric(&specs[i])
		*readings = append(*readings, reading(&specs[i], proposal.ratio, err))
		if err != nil {
			if failures++; failures == 1 {
				problem = Condition{"FailedGet" + string(specs[i].Type) + "Metric", "the HPA was unable to compute the replica count: " + err.Error()}
			}
			continue
		}
		if metric == "" || proposal.replicas > wanted {
			wanted, metric = proposal.replicas, name
		}
	}
	if failures > 0 && wanted < in.Replicas {
		metric = ""
	}
	return wanted, metric, problem
}

// proposal is what one metric asks for; ratio is that of its value to its target.
type proposal struct {
	replicas int32
	ratio    float64
}

// metric gives the proposal of one metric.
func (in *Input) metric(m *autoscalingv2.MetricSpec) (p proposal, name string, err error) {
	switch m.Type {
	case autoscalingv2.ResourceMetricSourceType:
		p, err = in.resource(m.Resource.Name, "", &m.Resource.Target)
		return p, fmt.Sprintf("%s resource%s", m.Resource.Name, utilization(&m.Resource.Target)), err
	case autoscalingv2.ContainerResourceMetricSourceType:
		c := m.ContainerResource
		p, err = in.resource(c.Name, c.Container, &c.Target)
		return p, fmt.Sprintf("%s container resource%s", c.Name, utilization(&c.Target)), err
	case autoscalingv2.PodsMetricSourceType:
		p, err = in.podsMetric(m)
		return p, "pods metric " + m.Pods.Metric.Name, err
	case autoscalingv2.ObjectMetricSourceType:
		p, err = in.total(m, &m.Object.Metric, &m.Object.Target)
		return p, m.Object.DescribedObject.Kind + " metric " + m.Object.Metric.Name, err
	case autoscalingv2.ExternalMetricSourceType:
		p, err = in.total(m, &m.External.Metric, &m.External.Target)
		return p, "external metric " + m.External.Metric.Name, err
	default:
		return p, "", fmt.Errorf("unknown metric source type %q", m.Type)
	}
}

func utilization(t *autoscalingv2.MetricTarget) string {
	if t.AverageValue != nil {
		return ""
	}
	return " utilization (percentage of request)"
}

// tolerances by which a ratio of usage may be off, down and up.
type tolerances struct{ down, up float64 }

func tolerancesOf(b *autoscalingv2.HorizontalPodAutoscalerBehavior) tolerances {
	t := tolerances{tolerance, tolerance}
	if b == nil {
		return t
	}
	if b.ScaleDown != nil && b.ScaleDown.Tolerance != nil {
		t.down = b.ScaleDown.Tolerance.AsApproximateFloat64()
	}
	if b.ScaleUp != nil && b.ScaleUp.Tolerance != nil {
		t.up = b.ScaleUp.Tolerance.AsApproximateFloat64()
	}
	return t
}

func (t tolerances) within(ratio float64) bool { return 1-t.down <= ratio && ratio <= 1+t.up }

// Measures reports whether an object asks for what its pods' containers use.
func Measures(o *autoscalingv2.HorizontalPodAutoscaler) bool {
	return slices.ContainsFunc(o.Spec.Metrics, func(m autoscalingv2.MetricSpec) bool {
		return m.Type == autoscalingv2.ResourceMetricSourceType || m.Type == autoscalingv2.ContainerResourceMetricSourceType
	})
}
