// Package metrics tells Prometheus how the cluster is.
//
// Everything but the counters of the control loop is read from the newest
// overview at the moment of a scrape: nothing is counted twice and nothing is
// kept. Labels come from fixed sets, or from what the repository names
// (namespaces, nodes, the revision in force), never from messages.
package metrics

import (
	"errors"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/status/report"
)

// Loop are the counters of the control loop since the process started.
type Loop struct {
	Steps, Decisions         uint64
	LastStep, MaxStep        time.Duration
	RecordErrors, LoadErrors uint64
	Revisions                map[nodes.Outcome]uint64
}

// Options for New.
type Options struct {
	// Overview is the newest one, never nil.
	Overview func() *nodes.Overview
	// Loop may be nil where no loop runs.
	Loop    func() Loop
	Version string
	// Now is the clock for ages; nil means time.Now.
	Now func() time.Time
}

// New makes a registry with the cluster's metrics and those of the process.
func New(o Options) (*prometheus.Registry, error) {
	if o.Overview == nil {
		return nil, errors.New("metrics: no overview")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		&collector{o},
	)
	return registry, nil
}

type collector struct{ Options }

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("tally_"+name, help, labels, nil)
}

// The descriptions never change.
var (
	buildInfo     = describe("build_info", "Version of Tallyman; always 1.", "version")
	objects       = describe("objects", "Objects of the revision in force, by health.", "kind", "health")
	pods          = describe("pods", "Pods, by namespace and phase.", "namespace", "phase")
	podsReady     = describe("pods_ready", "Ready pods, by namespace.", "namespace")
	restarts      = describe("container_restarts", "Restarts of the containers of the pods that are there now, by namespace.", "namespace")
	nodeReady     = describe("node_ready", "Whether the node is connected.", "node")
	nodeRoutes    = describe("node_routes_generation", "Newest generation of the route table in force on the node.", "node")
	revisionInfo  = describe("revision_info", "The revision in force; always 1.", "sha", "outcome", "signed")
	revisionTime  = describe("revision_commit_timestamp_seconds", "When the revision in force was committed.")
	converged     = describe("converged", "Whether nothing is left to do.")
	healthy       = describe("healthy", "Whether everything runs as the newest revision says.")
	planWaiting   = describe("plan_waiting", "What the plan waits for.")
	problems      = describe("problems", "Problems of the newest revision, by severity and code.", "severity", "code")
	held          = describe("revision_held", "Whether the newest revision waits for a confirmation.")
	rejected      = describe("revision_rejected", "Whether the newest revision was rejected.")
	syncState     = describe("sync_state", "State of the synchronisation with the repository; 1 for the one that holds.", "state")
	syncAge       = describe("sync_last_answer_age_seconds", "How long ago the repository answered.")
	services      = describe("service_endpoints", "Endpoints behind a service port.", "namespace", "service", "port")
	loopSteps     = describe("loop_steps_total", "Steps of the control loop.")
	loopLast      = describe("loop_last_step_seconds", "How long the last step took, recording and handing over included.")
	loopMax       = describe("loop_max_step_seconds", "How long the longest step took.")
	loopDecisions = describe("loop_decisions_total", "Decisions recorded.")
	loopErrors    = describe("loop_errors_total", "What had to be tried again, by what it was.", "what")
	revisions     = describe("revisions_total", "Revisions, by outcome.", "outcome")
)

// states of the synchronisation.
var states = [...]string{"synced", "fetching", "unreachable", "rejected", "held", "waiting", "stalled"}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		buildInfo, objects, pods, podsReady, restarts, nodeReady, nodeRoutes, revisionInfo, revisionTime, converged, healthy, planWaiting,
		problems, held, rejected, syncState, syncAge, services, loopSteps, loopLast, loopMax, loopDecisions, loopErrors, revisions,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	o := c.Overview()
	gauge(ch, buildInfo, 1, c.Version)
	collectObjects(ch, o)
	collectPods(ch, o)
	collectNodes(ch, o)
	collectRevision(ch, o)
	c.collectSync(ch, o)
	collectServices(ch, o)
	if c.Loop != nil {
		collectLoop(ch, c.Loop())
	}
}

func gauge(ch chan<- prometheus.Metric, d *prometheus.Desc, value float64, labels ...string) {
	send(ch, d, prometheus.GaugeValue, value, labels)
}

func counter(ch chan<- prometheus.Metric, d *prometheus.Desc, value float64, labels ...string) {
	send(ch, d, prometheus.CounterValue, value, labels)
}

// send makes labels valid first: names come from outside.
func send(ch chan<- prometheus.Metric, d *prometheus.Desc, kind prometheus.ValueType, value float64, labels []string) {
	for i := range labels {
		labels[i] = report.Clean(labels[i])
	}
	metric, err := prometheus.NewConstMetric(d, kind, value, labels...)
	if err != nil {
		metric = prometheus.NewInvalidMetric(d, err)
	}
	ch <- metric
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func collectObjects(ch chan<- prometheus.Metric, o *nodes.Overview) {
	counts := map[[2]string]int{}
	for i := range o.Objects {
		if object := &o.Objects[i]; object.Owner.IsZero() || object.Owner == object.Key {
			counts[[2]string{object.Key.Kind, string(object.Health)}]++
		}
	}
	for labels, n := range counts {
		gauge(ch, objects, float64(n), labels[0], labels[1])
	}
}

func collectPods(ch chan<- prometheus.Metric, o *nodes.Overview) {
	phases := map[[2]string]int{}
	ready, restarted := map[string]int{}, map[string]int{}
	for i := range o.Objects {
		object := &o.Objects[i]
		if object.Pod == nil {
			continue
		}
		namespace, status := object.Key.Namespace, &object.Pod.Status
		phase := string(status.Phase)
		if phase == "" {
			phase = "Pending"
		}
		phases[[2]string{namespace, phase}]++
		ready[namespace] += int(truth(status.Ready))
		restarted[namespace] += status.Restarts()
	}
	for labels, n := range phases {
		gauge(ch, pods, float64(n), labels[0], labels[1])
	}
	for namespace, n := range ready {
		gauge(ch, podsReady, float64(n), namespace)
		gauge(ch, restarts, float64(restarted[namespace]), namespace)
	}
}

func collectNodes(ch chan<- prometheus.Metric, o *nodes.Overview) {
	for _, n := range o.Nodes {
		gauge(ch, nodeReady, truth(n.Ready), n.Name)
		gauge(ch, nodeRoutes, float64(n.Routes), n.Name)
	}
}

func collectRevision(ch chan<- prometheus.Metric, o *nodes.Overview) {
	if o.InForce != nil {
		gauge(ch, revisionInfo, 1, o.InForce.SHA, string(o.Outcome), strconv.FormatBool(o.InForce.Signed))
		gauge(ch, revisionTime, float64(o.InForce.Time.Unix()))
	}
	gauge(ch, converged, truth(o.Plan.Converged))
	gauge(ch, healthy, truth(report.Healthy(o)))
	gauge(ch, planWaiting, float64(len(o.Plan.Waiting)))
	gauge(ch, held, truth(o.Held != nil))
	gauge(ch, rejected, truth(o.Rejected != nil))
	newest := o.Problems
	if o.Rejected != nil {
		newest = o.Rejected.Problems
	}
	counts := map[[2]string]int{}
	for _, p := range newest {
		counts[[2]string{string(p.Severity), p.Code}]++
	}
	for labels, n := range counts {
		gauge(ch, problems, float64(n), labels[0], labels[1])
	}
}

func (c *collector) collectSync(ch chan<- prometheus.Metric, o *nodes.Overview) {
	for _, state := range states {
		gauge(ch, syncState, truth(o.Sync.State == state), state)
	}
	if !o.Sync.Fetched.IsZero() {
		gauge(ch, syncAge, c.Now().Sub(o.Sync.Fetched).Seconds())
	}
}

func collectServices(ch chan<- prometheus.Metric, o *nodes.Overview) {
	for _, s := range o.Services {
		for _, p := range s.Ports {
			port := strconv.Itoa(int(p.Port)) + "/" + p.Protocol
			gauge(ch, services, float64(len(p.Endpoints)), s.Key.Namespace, s.Key.Name, port)
		}
	}
}

func collectLoop(ch chan<- prometheus.Metric, l Loop) {
	counter(ch, loopSteps, float64(l.Steps))
	counter(ch, loopDecisions, float64(l.Decisions))
	gauge(ch, loopLast, l.LastStep.Seconds())
	gauge(ch, loopMax, l.MaxStep.Seconds())
	counter(ch, loopErrors, float64(l.RecordErrors), "record")
	counter(ch, loopErrors, float64(l.LoadErrors), "load")
	for outcome, n := range l.Revisions {
		counter(ch, revisions, float64(n), string(outcome))
	}
}
