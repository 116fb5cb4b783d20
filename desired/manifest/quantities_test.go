package manifest

import (
	"context"
	"strings"
	"testing"

	"github.com/tallyman-dev/tallyman/desired"
)

const podWith = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers: [{name: c, image: x, "

// TestQuantitiesThatTakeLongAreRefused: a document of some bytes must not take
// the server's processor and memory.
func TestQuantitiesThatTakeLongAreRefused(t *testing.T) {
	long := "0." + strings.Repeat("0", 1000) + "1"
	for name, c := range map[string]struct{ text, field string }{
		"small":      {podWith + "resources: {requests: {cpu: '1e-1000000000'}}}]", "spec.containers[0].resources.requests[cpu]"},
		"large":      {podWith + "resources: {limits: {memory: '1e1000000000'}}}]", "spec.containers[0].resources.limits[memory]"},
		"long":       {podWith + "resources: {requests: {cpu: '" + long + "'}}}]", "spec.containers[0].resources.requests[cpu]"},
		"huge pages": {podWith + "resources: {limits: {hugepages-1e-1000000000: 1}}}]", "spec.containers[0].resources.limits[hugepages-1e-1000000000]"},
		"pointer":    {podWith + "volumeMounts: []}]\n  volumes: [{name: v, emptyDir: {sizeLimit: '1E+99999999999999999999'}}]", "spec.volumes[0].emptyDir.sizeLimit"},
		"quota":      {"apiVersion: v1\nkind: ResourceQuota\nmetadata: {name: q}\nspec: {hard: {requests.hugepages-1e-1000000000: 1}}", "spec.hard[requests.hugepages-1e-1000000000]"},
		"converted":  {"apiVersion: autoscaling/v2beta2\nkind: HorizontalPodAutoscaler\nmetadata: {name: a}\nspec: {maxReplicas: 1, scaleTargetRef: {kind: Deployment, name: a}, metrics: [{type: Pods, pods: {metric: {name: m}, target: {type: AverageValue, averageValue: '1e-1000000000'}}}]}", "spec.metrics[0].pods.target.averageValue"},
		"number":     {`{"apiVersion":"v1","kind":"LimitRange","metadata":{"name":"l"},"spec":{"limits":[{"type":"Pod","max":{"cpu":1e-1000000000}}]}}`, "spec.limits[0].max[cpu]"},
		"escaped":    {`{"apiVersion":"v1","kind":"LimitRange","metadata":{"name":"l"},"spec":{"limits":[{"type":"Pod","max":{"hugepages-1\u0065-1000000000":1}}]}}`, "spec.limits[0].max[hugepages-1e-1000000000]"},
		"in a List":  {`{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"PersistentVolumeClaim","metadata":{"name":"l"},"spec":{"resources":{"requests":{"storage":"1e-1000000000"}}}}]}`, "items[0].spec.resources.requests[storage]"},
	} {
		t.Run(name, func(t *testing.T) {
			s, problems, err := NewLoader().Load(context.Background(), newTree(map[string]string{"a.yaml": c.text}), desired.Revision{}, LoadOptions{})
			if err != nil || s != nil {
				t.Fatalf("accepted: %v", err)
			}
			if len(problems) != 1 || problems[0].Field != c.field || problems[0].Code != "invalid" || !strings.Contains(problems[0].Message, "quantity") {
				t.Errorf("problems %v, want one of %s", problems, c.field)
			}
		})
	}
}

// TestWhatIsNoQuantityMayLookLikeOne: names, values and digests.
func TestWhatIsNoQuantityMayLookLikeOne(t *testing.T) {
	mustLoad(t, NewLoader(), newTree(map[string]string{
		"c.yaml": configMap("a") + "data: {x: '1e-1000000000', y: '12345678901234567890123456789012345'}\n",
		"p.yaml": podWith + "resources: {requests: {cpu: 100e-3, memory: '1e18'}}, env: [{name: A, value: 1e1000000000x}]}]",
	}), LoadOptions{})
}
