package workload

import (
	"time"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Deployment fills in what a Deployment's spec says about its rollout; sets,
// time and history are the caller's to add.
func Deployment(spec *appsv1.DeploymentSpec) Rollout {
	r := Rollout{
		Replicas: int(valueOr(spec.Replicas, 1)),
		Recreate: spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType,
		Paused:   spec.Paused,
		MinReady: time.Duration(spec.MinReadySeconds) * time.Second,
		Deadline: time.Duration(valueOr(spec.ProgressDeadlineSeconds, int32(DefaultDeadline/time.Second))) * time.Second,
	}
	r.Surge, r.Unavailable = Limits(spec.Strategy.RollingUpdate, r.Replicas)
	if r.Recreate {
		r.Surge, r.Unavailable = 0, r.Replicas
	}
	return r
}

// ReplicaSet is a ReplicaSet that stands in Git by itself. Kubernetes would
// leave pods of an earlier template alone; here Git says what runs, so they are
// replaced one by one, each only when its successor is available.
func ReplicaSet(spec *appsv1.ReplicaSetSpec) Rollout {
	return Rollout{
		Replicas: int(valueOr(spec.Replicas, 1)),
		Surge:    1,
		MinReady: time.Duration(spec.MinReadySeconds) * time.Second,
		Deadline: DefaultDeadline,
	}
}

// Limits resolves maxSurge (percentages up) and maxUnavailable (percentages
// down) as Kubernetes does; when both come to 0, one pod may be unavailable,
// for else nothing could ever move.
func Limits(rolling *appsv1.RollingUpdateDeployment, replicas int) (surge, unavailable int) {
	quarter := intstr.FromString("25%")
	maxSurge, maxUnavailable := &quarter, &quarter
	if rolling != nil && rolling.MaxSurge != nil {
		maxSurge = rolling.MaxSurge
	}
	if rolling != nil && rolling.MaxUnavailable != nil {
		maxUnavailable = rolling.MaxUnavailable
	}
	surge = scaled(maxSurge, replicas, true)
	unavailable = min(replicas, scaled(maxUnavailable, replicas, false))
	if surge == 0 && unavailable == 0 {
		unavailable = 1
	}
	return surge, unavailable
}

// scaled ignores what validation has already refused.
func scaled(v *intstr.IntOrString, of int, up bool) int {
	n, err := intstr.GetScaledValueFromIntOrPercent(v, of, up)
	if err != nil || n < 0 {
		return 0
	}
	return n
}

// HistoryLimit is how many empty ReplicaSets a Deployment keeps.
func HistoryLimit(spec *appsv1.DeploymentSpec) int {
	return int(valueOr(spec.RevisionHistoryLimit, 10))
}

func valueOr(p *int32, fallback int32) int32 {
	if p == nil {
		return fallback
	}
	return *p
}
