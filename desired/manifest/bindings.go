package manifest

import (
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
)

// checkBindings looks for the objects that objects other than pods name: the
// volume of a claim, the service of a StatefulSet, what an autoscaler scales.
func (w *world) checkBindings(config desired.Settings) {
	for _, e := range w.objects {
		switch v := e.object.Value.(type) {
		case *appsv1.StatefulSet:
			w.checkServiceName(e, v)
		case *autoscalingv2.HorizontalPodAutoscaler:
			if target := w.checkScaleTarget(e, v); target != nil {
				w.checkMetrics(e, v, target, config)
			}
		}
		for _, c := range claimsOf(e.object) {
			w.checkClaim(e, c)
		}
	}
}

// checkServiceName warns only: the pods run, but have no names of their own.
func (w *world) checkServiceName(e *entry, s *appsv1.StatefulSet) {
	name := s.Spec.ServiceName
	if name == "" || w.known[desired.Key{Kind: "Service", Namespace: e.key.Namespace, Name: name}] != nil {
		return
	}
	w.found.report(e, desired.Warning, "missing-service", "spec.serviceName",
		fmt.Sprintf("there is no Service %q in namespace %s", name, e.key.Namespace), "without it, the pods have no names in DNS: add a headless Service")
}

// scalable are the kinds with a number of replicas, and their groups.
var scalable = map[string]string{"Deployment": "apps", "StatefulSet": "apps", "ReplicaSet": "apps", "ReplicationController": ""}

// checkScaleTarget gives what an autoscaler scales; nil when there is nothing to
// look at.
func (w *world) checkScaleTarget(e *entry, a *autoscalingv2.HorizontalPodAutoscaler) *desired.Object {
	target := a.Spec.ScaleTargetRef
	group, ok := scalable[target.Kind]
	if !ok {
		w.found.report(e, desired.Error, "unsupported", "spec.scaleTargetRef.kind",
			fmt.Sprintf("is not supported: a %s has no number of replicas here", target.Kind), "")
		return nil
	}
	if target.Name == "" {
		return nil
	}
	if known := w.known[desired.Key{Group: group, Kind: target.Kind, Namespace: e.key.Namespace, Name: target.Name}]; known != nil {
		return known.object
	}
	w.found.report(e, desired.Error, "missing-"+strings.ToLower(target.Kind), "spec.scaleTargetRef",
		fmt.Sprintf("there is no %s %q in namespace %s", target.Kind, target.Name, e.key.Namespace), "add what is to be scaled, or correct the reference")
	return nil
}

// checkClaim warns only: the claim waits, as it would in Kubernetes.
func (w *world) checkClaim(e *entry, c claimSpec) {
	if name := c.spec.VolumeName; name != "" && w.known[desired.Key{Kind: "PersistentVolume", Name: name}] == nil {
		w.found.report(e, desired.Warning, "missing-persistentvolume", c.path+".volumeName",
			fmt.Sprintf("there is no PersistentVolume %q", name), "the claim waits until there is one")
	}
}

// makesClaim reports whether a StatefulSet makes the claim of this name.
func (w *world) makesClaim(namespace, name string) bool {
	return slices.ContainsFunc(w.objects, func(e *entry) bool {
		s, ok := e.object.Value.(*appsv1.StatefulSet)
		return ok && e.key.Namespace == namespace && slices.ContainsFunc(s.Spec.VolumeClaimTemplates, func(c corev1.PersistentVolumeClaim) bool {
			return strings.HasPrefix(name, c.Name+"-"+s.Name+"-")
		})
	})
}
