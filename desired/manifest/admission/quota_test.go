package admission

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"pgregory.net/rapid"

	"github.com/tallyman-dev/tallyman/desired"
)

func quotaObject(name string, hard corev1.ResourceList, scopes ...corev1.ResourceQuotaScope) *desired.Object {
	return object("ResourceQuota", name, &corev1.ResourceQuota{Spec: corev1.ResourceQuotaSpec{Hard: hard, Scopes: scopes}})
}

func running(replicas int64, t Template) Use {
	return Use{Object: t.Object, Resource: "deployments.apps", Pods: &t, Replicas: replicas}
}

func plain(kind, resource, name string) Use {
	return Use{Object: desired.Key{Kind: kind, Namespace: "shop", Name: name}, Resource: resource}
}

func passing(name string, t Template) Use {
	u := running(1, t)
	u.Object = desired.Key{Group: "batch", Kind: "Job", Namespace: "shop", Name: name}
	u.Resource, u.Passing = "jobs.batch", true
	return u
}

// The wording is that of Kubernetes' plugin ResourceQuota.
func TestQuota(t *testing.T) {
	deadline := int64(60)
	small := container("c", list("cpu", "500m", "memory", "64Mi"), list("cpu", "1", "memory", "128Mi"))
	short := deployment("short", small)
	short.Spec.ActiveDeadlineSeconds = &deadline
	urgent := deployment("urgent", small)
	urgent.Spec.PriorityClassName = "high"
	byClass := quotaObject("high", list("pods", "1"))
	byClass.Value.(*corev1.ResourceQuota).Spec.ScopeSelector = &corev1.ScopeSelector{MatchExpressions: []corev1.ScopedResourceSelectorRequirement{
		{ScopeName: corev1.ResourceQuotaScopePriorityClass, Operator: corev1.ScopeSelectorOpIn, Values: []string{"high"}},
	}}
	service := func(name string, spec corev1.ServiceSpec) Use {
		u := plain("Service", "services", name)
		u.Service = &corev1.Service{Spec: spec}
		return u
	}
	claim := func(name, class, size string, n int64) Use {
		u := plain("PersistentVolumeClaim", "persistentvolumeclaims", name)
		u.Claims = []Claim{{Count: n, Class: class, Path: "spec", Spec: &corev1.PersistentVolumeClaimSpec{Resources: corev1.VolumeResourceRequirements{Requests: list("storage", size)}}}}
		return u
	}
	no := false
	ports := []corev1.ServicePort{{Port: 80}, {Port: 443, NodePort: 30443}}
	for name, c := range map[string]struct {
		quota *desired.Object
		uses  []Use
		want  []string
	}{
		"just enough": {
			quota: quotaObject("q", list("pods", "3", "requests.cpu", "1500m", "limits.memory", "384Mi")),
			uses:  []Use{running(3, deployment("web", small))},
		},
		"too many pods": {
			quota: quotaObject("q", list("pods", "3", "requests.cpu", "10")),
			uses:  []Use{running(2, deployment("a", small)), running(2, deployment("b", small)), running(1, deployment("c", small))},
			want:  []string{"Deployment shop/b spec.template.spec.containers: exceeded quota: q, requested: pods=2, used: pods=2, limited: pods=3"},
		},
		"several resources": {
			quota: quotaObject("q", list("cpu", "1", "requests.memory", "100Mi", "limits.cpu", "100")),
			uses:  []Use{running(3, deployment("web", small))},
			want:  []string{"Deployment shop/web spec.template.spec.containers: exceeded quota: q, requested: cpu=1500m,requests.memory=192Mi, used: cpu=0,requests.memory=0, limited: cpu=1,requests.memory=100Mi"},
		},
		"unspecified": {
			quota: quotaObject("q", list("limits.cpu", "1", "requests.memory", "1Gi", "requests.ephemeral-storage", "1Gi")),
			uses:  []Use{running(1, deployment("web", container("b", nil, nil), container("a", nil, list("memory", "1Mi"))))},
			want:  []string{"Deployment shop/web spec.template.spec.containers: failed quota: q: must specify limits.cpu for: a,b; requests.memory for: b"},
		},
		"no pods, no need to specify": {
			quota: quotaObject("q", list("limits.cpu", "1")),
			uses:  []Use{running(0, deployment("web", container("b", nil, nil)))},
		},
		"limits stand for requests": {
			quota: quotaObject("q", list("requests.cpu", "1")),
			uses:  []Use{running(2, deployment("web", container("c", nil, list("cpu", "1"))))},
			want:  []string{"Deployment shop/web spec.template.spec.containers: exceeded quota: q, requested: requests.cpu=2, used: requests.cpu=0, limited: requests.cpu=1"},
		},
		"best effort": {
			quota: quotaObject("q", list("pods", "1"), corev1.ResourceQuotaScopeBestEffort),
			uses:  []Use{running(5, deployment("a", small)), running(2, deployment("b", container("c", nil, nil)))},
			want:  []string{"Deployment shop/b spec.template.spec.containers: exceeded quota: q, requested: pods=2, used: pods=0, limited: pods=1"},
		},
		"not best effort": {
			quota: quotaObject("q", list("pods", "1"), corev1.ResourceQuotaScopeNotBestEffort),
			uses:  []Use{running(5, deployment("b", container("c", nil, nil)))},
		},
		"terminating": {
			quota: quotaObject("q", list("pods", "1"), corev1.ResourceQuotaScopeTerminating),
			uses:  []Use{running(5, deployment("a", small)), running(2, short)},
			want:  []string{"Deployment shop/short spec.template.spec.containers: exceeded quota: q, requested: pods=2, used: pods=0, limited: pods=1"},
		},
		"not terminating": {
			quota: quotaObject("q", list("pods", "1"), corev1.ResourceQuotaScopeNotTerminating, corev1.ResourceQuotaScopeNotBestEffort),
			uses:  []Use{running(2, short)},
		},
		"priority class": {
			quota: byClass,
			uses:  []Use{running(5, deployment("a", small)), running(2, urgent)},
			want:  []string{"Deployment shop/urgent spec.template.spec.containers: exceeded quota: high, requested: pods=2, used: pods=0, limited: pods=1"},
		},
		"objects": {
			quota: quotaObject("q", list("configmaps", "1", "count/secrets", "0", "count/deployments.apps", "1", "services", "9")),
			uses:  []Use{plain("ConfigMap", "configmaps", "a"), plain("ConfigMap", "configmaps", "b"), plain("Secret", "secrets", "s"), running(0, deployment("x")), running(0, deployment("y"))},
			want: []string{
				"ConfigMap shop/b kind: exceeded quota: q, requested: configmaps=1, used: configmaps=1, limited: configmaps=1",
				"Deployment shop/y kind: exceeded quota: q, requested: count/deployments.apps=1, used: count/deployments.apps=1, limited: count/deployments.apps=1",
				"Secret shop/s kind: exceeded quota: q, requested: count/secrets=1, used: count/secrets=0, limited: count/secrets=0",
			},
		},
		"services": {
			quota: quotaObject("q", list("services.nodeports", "3", "services.loadbalancers", "1")),
			uses: []Use{
				service("a", corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: ports}),
				service("b", corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: ports, AllocateLoadBalancerNodePorts: &no}),
				service("c", corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: ports}),
				service("d", corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, Ports: ports}),
			},
			want: []string{"Service shop/c kind: exceeded quota: q, requested: services.loadbalancers=1,services.nodeports=2, used: services.loadbalancers=1,services.nodeports=3, limited: services.loadbalancers=1,services.nodeports=3"},
		},
		"claims": {
			quota: quotaObject("q", list("requests.storage", "10Gi", "fast.storageclass.storage.k8s.io/requests.storage", "2Gi", "persistentvolumeclaims", "9")),
			uses:  []Use{claim("a", "fast", "1Gi", 2), claim("b", "fast", "1Gi", 1), claim("c", "slow", "8Gi", 1), claim("d", "", "1Gi", 1)},
			want: []string{
				"PersistentVolumeClaim shop/b spec.resources.requests: exceeded quota: q, requested: fast.storageclass.storage.k8s.io/requests.storage=1Gi, used: fast.storageclass.storage.k8s.io/requests.storage=2Gi, limited: fast.storageclass.storage.k8s.io/requests.storage=2Gi",
				"PersistentVolumeClaim shop/d spec.resources.requests: exceeded quota: q, requested: requests.storage=1Gi, used: requests.storage=10Gi, limited: requests.storage=10Gi",
			},
		},
		"hugepages and devices": {
			quota: quotaObject("q", list("requests.hugepages-2Mi", "4Mi", "requests.example.com/gpu", "1")),
			uses:  []Use{running(1, deployment("web", container("c", list("hugepages-2Mi", "8Mi", "example.com/gpu", "2"), list("hugepages-2Mi", "8Mi", "example.com/gpu", "2"))))},
			want:  []string{"Deployment shop/web spec.template.spec.containers: exceeded quota: q, requested: requests.example.com/gpu=2,requests.hugepages-2Mi=8Mi, used: requests.example.com/gpu=0,requests.hugepages-2Mi=0, limited: requests.example.com/gpu=1,requests.hugepages-2Mi=4Mi"},
		},
		"pods that pass do not add up": {
			quota: quotaObject("q", list("requests.cpu", "1")),
			uses:  []Use{passing("one", deployment("x", small)), passing("two", deployment("x", small)), running(1, deployment("web", small))},
		},
		"but stand on top of those that stay": {
			quota: quotaObject("q", list("requests.cpu", "1")),
			uses:  []Use{passing("one", deployment("x", small)), running(2, deployment("web", small))},
			want:  []string{"Job shop/one spec.template.spec.containers: exceeded quota: q, requested: requests.cpu=500m, used: requests.cpu=1, limited: requests.cpu=1"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, f := range CheckQuotas([]*desired.Object{c.quota}, c.uses) {
				got = append(got, f.Object.String()+" "+f.Field+": "+f.Message)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// A quota of another namespace bounds nothing.
func TestQuotaOfAnotherNamespace(t *testing.T) {
	q := quotaObject("q", list("pods", "0"))
	q.Key.Namespace = "other"
	if got := CheckQuotas([]*desired.Object{q}, []Use{running(1, deployment("web", container("c", nil, nil)))}); len(got) > 0 {
		t.Errorf("findings %v", messages(got))
	}
}

// Objects are refused exactly when a naive model, which adds up milli-cpu in
// integers, has no room for them, and the sum said is that of the model.
func TestQuotaProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		hard := rapid.Int64Range(0, 6000).Draw(t, "hard")
		n := rapid.IntRange(0, 8).Draw(t, "deployments")
		var uses []Use
		var want []string
		used := int64(0)
		for i := range n {
			milli := rapid.Int64Range(1, 900).Draw(t, "milli")
			pair := rapid.Int64Range(0, 900).Draw(t, "second container")
			replicas := rapid.Int64Range(0, 5).Draw(t, "replicas")
			cpu := func(m int64) corev1.ResourceList {
				return corev1.ResourceList{corev1.ResourceCPU: *resource.NewMilliQuantity(m, resource.DecimalSI)}
			}
			uses = append(uses, running(replicas, deployment(fmt.Sprintf("d%d", i), container("a", cpu(milli), nil), container("b", nil, cpu(pair)))))
			sum := (milli + pair) * replicas
			if used+sum > hard && sum > 0 {
				want = append(want, fmt.Sprintf("d%d used %d", i, used))
				continue
			}
			used += sum
		}
		var got []string
		for _, f := range CheckQuotas([]*desired.Object{quotaObject("q", corev1.ResourceList{"requests.cpu": *resource.NewMilliQuantity(hard, resource.DecimalSI)})}, rapid.Permutation(uses).Draw(t, "order")) {
			_, rest, _ := strings.Cut(f.Message, "used: requests.cpu=")
			said, _, _ := strings.Cut(rest, ",")
			amount := resource.MustParse(said)
			got = append(got, fmt.Sprintf("%s used %d", f.Object.Name, amount.MilliValue()))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	})
}
