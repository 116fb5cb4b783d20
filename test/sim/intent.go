package sim

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/tallyman-dev/tallyman/desired"
)

const (
	kindDeployment = "Deployment"
	kindReplicaSet = "ReplicaSet"
	kindPod        = "Pod"

	kindStatefulSet = "StatefulSet"
	kindDaemonSet   = "DaemonSet"
	kindJob         = "Job"

	kindService   = "Service"
	kindConfigMap = "ConfigMap"
	kindSecret    = "Secret"
	kindNamespace = "Namespace"
)

// intent is what one commit says, as the simulator understands it: the oracle
// is written against this, not against Kubernetes objects. Values in its maps
// are never changed, only replaced.
type intent struct {
	workloads  map[desired.Key]workload
	services   map[desired.Key]service
	configs    map[desired.Key]string // ConfigMaps and Secrets by their one value
	namespaces map[string]bool
	claims     map[desired.Key]int // PersistentVolumeClaims by their size in Gi
	classes    map[string]bool
	scalers    map[desired.Key]scaler
	words      map[string]word // of nodes
	// keep is how long data outlives its claim.
	keep time.Duration
	// nodes says what becomes of pods whose node is not heard of.
	nodes desired.Nodes
}

// serves reports whether a service leads to the pods of a workload.
func (i *intent) serves(k desired.Key) bool {
	for service, v := range i.services {
		if service.Namespace == k.Namespace && v.app == k.Name {
			return true
		}
	}
	return false
}

type workload struct {
	storage
	schedule
	company

	// replicas of a Job are its parallelism.
	replicas, completions int
	image                 string
	surge, unavailable    string
	recreate              bool
	minReady              int
	probe                 bool
	// config is read as environment; zero for none.
	config desired.Key
	cpu    int64 // milli
	grace  int64
	// parallel StatefulSets start and stop their pods at once; recreate makes a
	// DaemonSet surge.
	parallel bool
	// generation is part of the labels and the selector.
	generation int
}

type service struct {
	app      string
	headless bool
	// early routes to pods that are not ready (publishNotReadyAddresses).
	early bool
}

func (i *intent) clone() *intent {
	return &intent{
		workloads: maps.Clone(i.workloads), services: maps.Clone(i.services),
		configs: maps.Clone(i.configs), namespaces: maps.Clone(i.namespaces),
		claims: maps.Clone(i.claims), classes: maps.Clone(i.classes), scalers: maps.Clone(i.scalers), words: maps.Clone(i.words), keep: i.keep, nodes: i.nodes,
	}
}

// keys of all objects, sorted.
func (i *intent) keys() []desired.Key {
	var list []desired.Key
	list = slices.AppendSeq(list, maps.Keys(i.workloads))
	list = slices.AppendSeq(list, maps.Keys(i.services))
	list = slices.AppendSeq(list, maps.Keys(i.configs))
	list = slices.AppendSeq(list, maps.Keys(i.claims))
	list = slices.AppendSeq(list, maps.Keys(i.scalers))
	for name := range i.namespaces {
		list = append(list, namespaceKey(name))
	}
	for name := range i.classes {
		list = append(list, classKey(name))
	}
	for name := range i.words {
		list = append(list, nodeKey(name))
	}
	slices.SortFunc(list, desired.Key.Compare)
	return list
}

// gone are the keys that i has and next has not.
func (i *intent) gone(next *intent) []desired.Key {
	kept := map[desired.Key]bool{}
	for _, k := range next.keys() {
		kept[k] = true
	}
	return slices.DeleteFunc(i.keys(), func(k desired.Key) bool { return kept[k] })
}

// changed counts the objects that both have and that differ.
func (i *intent) changed(next *intent) int {
	n := 0
	gone := i.gone(next)
	for _, k := range i.keys() {
		if !slices.Contains(gone, k) && mustJSON(i.object(k)) != mustJSON(next.object(k)) {
			n++
		}
	}
	return n
}

// mustHold is the guard as the manual states it: why going from i to next
// needs a confirmation; empty when it does not. running counts a namespace's
// pods, losesData tells that data is deleted some time after.
func (i *intent) mustHold(next *intent, sourceChanged bool, running func(namespace string) int, losesData bool) string {
	gone := i.gone(next)
	switch {
	case sourceChanged && len(gone)+i.changed(next) > 0:
		return "another source"
	case len(gone) == 0:
		return ""
	case len(gone) == len(i.keys()):
		return "everything"
	case losesData:
		return "data"
	}
	lost, had := map[string]int{}, map[string]int{}
	for _, k := range i.keys() {
		had[k.Kind]++
	}
	for _, k := range gone {
		lost[k.Kind]++
		if k.Kind == kindNamespace && running(k.Name) > 0 && !next.uses(k.Name) {
			return "a namespace with pods"
		}
	}
	for kind, n := range lost {
		if len(gone) > 10 && n*10 > had[kind] {
			return "many objects"
		}
	}
	return ""
}

// uses reports whether anything is in a namespace.
func (i *intent) uses(namespace string) bool {
	return slices.ContainsFunc(i.keys(), func(k desired.Key) bool { return k.Namespace == namespace })
}

func namespaceKey(name string) desired.Key { return desired.Key{Kind: kindNamespace, Name: name} }

func classKey(name string) desired.Key {
	return desired.Key{Group: "storage.k8s.io", Kind: kindClass, Name: name}
}

// bounds are how many pods a workload may have and must have available.
func (w *workload) bounds(kind string) (most, least int) {
	switch {
	case kind == kindReplicaSet:
		return w.replicas + 1, w.replicas
	case kind == kindPod:
		return 1, 0
	case kind == kindStatefulSet:
		return w.replicas, w.replicas - 1
	case kind == kindDaemonSet && w.recreate:
		return 2 * w.replicas, w.replicas
	case kind == kindDaemonSet:
		return w.replicas, w.replicas - 1
	case kind == kindJob:
		return w.replicas, 0
	case w.recreate:
		return w.replicas, 0
	}
	surge, unavailable := share(w.surge, w.replicas, true), share(w.unavailable, w.replicas, false)
	if surge == 0 && unavailable == 0 {
		unavailable = 1
	}
	if w.replicas == 0 {
		surge = 0
	}
	return w.replicas + surge, w.replicas - unavailable
}

// share is a number or a percentage of all.
func share(text string, all int, up bool) int {
	var n int
	if percent, found := strings.CutSuffix(text, "%"); found {
		fmt.Sscan(percent, &n)
		n *= all
		if up {
			n += 99
		}
		return n / 100
	}
	fmt.Sscan(text, &n)
	return n
}

// snapshot is the intent as Kubernetes objects, defaulted.
func (i *intent) snapshot(r desired.Revision) *desired.Snapshot {
	var objects []*desired.Object
	for line, k := range i.keys() {
		v := i.object(k)
		objects = append(objects, &desired.Object{
			Key: k, Value: v, From: desired.Place{File: "all.yaml", Line: line + 1}, Fingerprint: mustJSON(v),
		})
	}
	settings := desired.DefaultSettings()
	settings.KeepData, settings.Nodes = i.keep, i.nodes
	return desired.NewSnapshot(r, settings, objects, nil)
}

// printObjects is everything that a snapshot says, to see whether somebody
// changed it.
func printObjects(s *desired.Snapshot) string {
	var b strings.Builder
	for o := range s.All() {
		b.WriteString(mustJSON(o.Value))
	}
	return b.String()
}

func mustJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func (i *intent) object(k desired.Key) runtime.Object {
	meta := metav1.ObjectMeta{Namespace: k.Namespace, Name: k.Name}
	switch k.Kind {
	case kindNamespace:
		return &corev1.Namespace{ObjectMeta: meta}
	case kindConfigMap:
		return &corev1.ConfigMap{ObjectMeta: meta, Data: map[string]string{"value": i.configs[k]}}
	case kindSecret:
		return &corev1.Secret{ObjectMeta: meta, Type: corev1.SecretTypeOpaque, Data: map[string][]byte{"value": []byte(i.configs[k])}}
	case kindService:
		return serviceObject(meta, i.services[k])
	case kindClaim:
		return claimObject(meta, i.claims[k])
	case kindClass:
		return classObject(meta)
	case kindNode:
		return nodeObject(k.Name, i.words[k.Name])
	case kindScaler:
		return scalerObject(meta, i.scalers[k])
	}
	w := i.workloads[k]
	switch k.Kind {
	case kindReplicaSet:
		return replicaSetObject(meta, &w)
	case kindStatefulSet:
		return statefulSetObject(meta, &w)
	case kindDaemonSet:
		return daemonSetObject(meta, &w)
	case kindJob:
		return jobObject(meta, &w)
	case kindCronJob:
		return cronJobObject(meta, &w)
	case kindPod:
		t := w.template(k.Name)
		meta.Labels = t.Labels
		return &corev1.Pod{ObjectMeta: meta, Spec: t.Spec}
	}
	return deploymentObject(meta, &w)
}

func serviceObject(meta metav1.ObjectMeta, s service) *corev1.Service {
	v := &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeClusterIP, Selector: map[string]string{"app": s.app}, SessionAffinity: corev1.ServiceAffinityNone,
		Ports:                    []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80, TargetPort: intstr.FromString("http")}},
		PublishNotReadyAddresses: s.early,
	}}
	if s.headless {
		v.Spec.ClusterIP = corev1.ClusterIPNone
	}
	return v
}

func deploymentObject(meta metav1.ObjectMeta, w *workload) *appsv1.Deployment {
	replicas, history, deadline := int32(w.replicas), int32(3), int32(600)
	d := &appsv1.Deployment{ObjectMeta: meta, Spec: appsv1.DeploymentSpec{
		Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: w.labels(meta.Name)}, Template: w.template(meta.Name),
		MinReadySeconds: int32(w.minReady), RevisionHistoryLimit: &history, ProgressDeadlineSeconds: &deadline,
		Strategy: appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType},
	}}
	if !w.recreate {
		surge, unavailable := intstr.Parse(w.surge), intstr.Parse(w.unavailable)
		d.Spec.Strategy = appsv1.DeploymentStrategy{
			Type:          appsv1.RollingUpdateDeploymentStrategyType,
			RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &surge, MaxUnavailable: &unavailable},
		}
	}
	return d
}

func replicaSetObject(meta metav1.ObjectMeta, w *workload) *appsv1.ReplicaSet {
	replicas := int32(w.replicas)
	return &appsv1.ReplicaSet{ObjectMeta: meta, Spec: appsv1.ReplicaSetSpec{
		Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: w.labels(meta.Name)},
		Template: w.template(meta.Name), MinReadySeconds: int32(w.minReady),
	}}
}

func statefulSetObject(meta metav1.ObjectMeta, w *workload) *appsv1.StatefulSet {
	replicas, history, partition := int32(w.replicas), int32(3), int32(0)
	s := &appsv1.StatefulSet{ObjectMeta: meta, Spec: appsv1.StatefulSetSpec{
		Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: w.labels(meta.Name)}, Template: w.template(meta.Name),
		VolumeClaimTemplates: w.claimTemplates(), PersistentVolumeClaimRetentionPolicy: w.retention(),
		ServiceName: meta.Name, MinReadySeconds: int32(w.minReady), RevisionHistoryLimit: &history,
		PodManagementPolicy: appsv1.OrderedReadyPodManagement,
		UpdateStrategy: appsv1.StatefulSetUpdateStrategy{
			Type: appsv1.RollingUpdateStatefulSetStrategyType, RollingUpdate: &appsv1.RollingUpdateStatefulSetStrategy{Partition: &partition},
		},
	}}
	if w.parallel {
		s.Spec.PodManagementPolicy = appsv1.ParallelPodManagement
	}
	return s
}

func daemonSetObject(meta metav1.ObjectMeta, w *workload) *appsv1.DaemonSet {
	history, surge, unavailable := int32(3), intstr.FromInt32(0), intstr.FromInt32(1)
	if w.recreate {
		surge, unavailable = unavailable, surge
	}
	return &appsv1.DaemonSet{ObjectMeta: meta, Spec: appsv1.DaemonSetSpec{
		Selector: &metav1.LabelSelector{MatchLabels: w.labels(meta.Name)}, Template: w.template(meta.Name),
		MinReadySeconds: int32(w.minReady), RevisionHistoryLimit: &history,
		UpdateStrategy: appsv1.DaemonSetUpdateStrategy{
			Type: appsv1.RollingUpdateDaemonSetStrategyType, RollingUpdate: &appsv1.RollingUpdateDaemonSet{MaxSurge: &surge, MaxUnavailable: &unavailable},
		},
	}}
}

func jobObject(meta metav1.ObjectMeta, w *workload) *batchv1.Job {
	parallelism, completions, limit := int32(w.replicas), int32(w.completions), int32(1000)
	t := w.template(meta.Name)
	t.Spec.RestartPolicy = corev1.RestartPolicyNever
	j := &batchv1.Job{ObjectMeta: meta, Spec: batchv1.JobSpec{Parallelism: &parallelism, Completions: &completions, BackoffLimit: &limit, Template: t}}
	if w.recreate {
		j.Spec.CompletionMode = new(batchv1.IndexedCompletion)
	}
	return j
}

func (w *workload) labels(name string) map[string]string {
	return map[string]string{"app": name, "generation": fmt.Sprint(w.generation)}
}

func (w *workload) template(name string) corev1.PodTemplateSpec {
	c := corev1.Container{
		Name: "main", Image: w.image, ImagePullPolicy: corev1.PullIfNotPresent,
		Ports:     []corev1.ContainerPort{{Name: "http", ContainerPort: 8080, Protocol: corev1.ProtocolTCP}},
		Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: *resource.NewMilliQuantity(w.cpu, resource.DecimalSI)}},
	}
	if w.probe {
		c.ReadinessProbe = &corev1.Probe{
			PeriodSeconds: 5, TimeoutSeconds: 1, SuccessThreshold: 1, FailureThreshold: 1,
			ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"ready"}}},
		}
	}
	if !w.config.IsZero() {
		c.Env = []corev1.EnvVar{{Name: "VALUE", ValueFrom: valueFrom(w.config)}}
	}
	var volumes []corev1.Volume
	if w.claim != "" {
		volumes = []corev1.Volume{{Name: "disk", VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: w.claim},
		}}}
	}
	grace := w.grace
	t := corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: w.labels(name)},
		Spec: corev1.PodSpec{
			Containers: []corev1.Container{c}, Volumes: volumes, RestartPolicy: corev1.RestartPolicyAlways, DNSPolicy: corev1.DNSClusterFirst,
			TerminationGracePeriodSeconds: &grace, SecurityContext: &corev1.PodSecurityContext{}, SchedulerName: corev1.DefaultSchedulerName,
		},
	}
	w.join(name, &t)
	return t
}

func valueFrom(k desired.Key) *corev1.EnvVarSource {
	name := corev1.LocalObjectReference{Name: k.Name}
	if k.Kind == kindSecret {
		return &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: name, Key: "value"}}
	}
	return &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: name, Key: "value"}}
}
