package manifest

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/tallyman-dev/tallyman/desired"
)

// versionCase is an object of another version and some of what it must become.
type versionCase struct {
	name, text string
	// want are values by their path in JSON.
	want map[string]any
}

const oldTemplate = `template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: "c:1"}]}}`

func versionCases() []versionCase {
	return []versionCase{
		{
			"deployment of extensions", "apiVersion: extensions/v1beta1\nkind: Deployment\nmetadata: {name: x}\nspec: {rollbackTo: {revision: 3}, " + oldTemplate + "}",
			map[string]any{
				"apiVersion": "apps/v1", "metadata.labels.a": "b", "metadata.annotations": nil, "spec.selector.matchLabels.a": "b", "spec.replicas": 1.0,
				"spec.strategy.rollingUpdate.maxSurge": 1.0, "spec.strategy.rollingUpdate.maxUnavailable": 1.0,
				"spec.revisionHistoryLimit": 2147483647.0, "spec.progressDeadlineSeconds": 2147483647.0,
			},
		},
		{
			"deployment of apps/v1beta1", "apiVersion: apps/v1beta1\nkind: Deployment\nmetadata: {name: x}\nspec: {" + oldTemplate + "}",
			map[string]any{
				"apiVersion": "apps/v1", "spec.selector.matchLabels.a": "b", "spec.strategy.rollingUpdate.maxSurge": "25%",
				"spec.revisionHistoryLimit": 2.0, "spec.progressDeadlineSeconds": 600.0,
			},
		},
		{
			"replica set of extensions", "apiVersion: extensions/v1beta1\nkind: ReplicaSet\nmetadata: {name: x}\nspec: {" + oldTemplate + "}",
			map[string]any{"apiVersion": "apps/v1", "spec.selector.matchLabels.a": "b", "spec.replicas": 1.0},
		},
		{
			"daemon set of extensions", "apiVersion: extensions/v1beta1\nkind: DaemonSet\nmetadata: {name: x}\nspec: {templateGeneration: 4, " + oldTemplate + "}",
			map[string]any{"apiVersion": "apps/v1", "spec.updateStrategy.type": "OnDelete", "spec.selector.matchLabels.a": "b", "metadata.annotations": nil},
		},
		{
			"stateful set of apps/v1beta1", "apiVersion: apps/v1beta1\nkind: StatefulSet\nmetadata: {name: x}\nspec: {serviceName: s, " + oldTemplate + "}",
			map[string]any{"apiVersion": "apps/v1", "spec.updateStrategy.type": "OnDelete", "spec.selector.matchLabels.a": "b"},
		},
		{
			"stateful set of apps/v1beta2", "apiVersion: apps/v1beta2\nkind: StatefulSet\nmetadata: {name: x}\nspec: {serviceName: s, selector: {matchLabels: {a: b}}, " + oldTemplate + "}",
			map[string]any{"apiVersion": "apps/v1", "spec.updateStrategy.type": "RollingUpdate"},
		},
		{
			"cron job", "apiVersion: batch/v2alpha1\nkind: CronJob\nmetadata: {name: x}\nspec: {schedule: '* * * * *', jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: c}]}}}}}",
			map[string]any{"apiVersion": "batch/v1", "spec.concurrencyPolicy": "Allow", "spec.successfulJobsHistoryLimit": 3.0},
		},
		{
			"ingress of extensions", "apiVersion: extensions/v1beta1\nkind: Ingress\nmetadata: {name: x}\nspec: {backend: {serviceName: s, servicePort: 80}, rules: [{http: {paths: [{backend: {serviceName: t, servicePort: web}}]}}]}",
			map[string]any{
				"apiVersion": "networking.k8s.io/v1", "spec.defaultBackend.service.name": "s", "spec.defaultBackend.service.port.number": 80.0,
				"spec.rules.0.http.paths.0.pathType": "ImplementationSpecific", "spec.rules.0.http.paths.0.backend.service.port.name": "web",
			},
		},
		{
			"disruption budget", "apiVersion: policy/v1beta1\nkind: PodDisruptionBudget\nmetadata: {name: x}\nspec: {minAvailable: 1, selector: {}}",
			map[string]any{"apiVersion": "policy/v1", "spec.selector.matchExpressions.0.key": "pdb.kubernetes.io/deprecated-v1beta1-empty-selector-match"},
		},
		{
			"runtime class", "apiVersion: node.k8s.io/v1alpha1\nkind: RuntimeClass\nmetadata: {name: x}\nspec: {runtimeHandler: runsc}",
			map[string]any{"apiVersion": "node.k8s.io/v1", "handler": "runsc"},
		},
		{
			"autoscaler of v1", "apiVersion: autoscaling/v1\nkind: HorizontalPodAutoscaler\nmetadata: {name: x}\nspec: {maxReplicas: 3, targetCPUUtilizationPercentage: 60, scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: d}}",
			map[string]any{
				"apiVersion": "autoscaling/v2", "spec.minReplicas": 1.0, "spec.metrics.0.resource.name": "cpu",
				"spec.metrics.0.resource.target.averageUtilization": 60.0,
			},
		},
		{
			"autoscaler of v2beta2", "apiVersion: autoscaling/v2beta2\nkind: HorizontalPodAutoscaler\nmetadata: {name: x}\nspec: {maxReplicas: 3, scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: d}}",
			map[string]any{"apiVersion": "autoscaling/v2", "spec.metrics.0.resource.target.averageUtilization": 80.0},
		},
		{
			"autoscaler of v2beta1", `apiVersion: autoscaling/v2beta1
kind: HorizontalPodAutoscaler
metadata: {name: x, annotations: {autoscaling.alpha.kubernetes.io/behavior: '{"scaleDown":{"stabilizationWindowSeconds":7}}'}}
spec:
  maxReplicas: 3
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: d}
  metrics:
    - {type: Resource, resource: {name: memory, targetAverageValue: 1Gi}}
    - {type: Resource, resource: {name: cpu, targetAverageUtilization: 50}}
    - {type: Pods, pods: {metricName: rate, targetAverageValue: 10}}
    - {type: Object, object: {metricName: hits, target: {kind: Service, name: s, apiVersion: v1}, targetValue: 5}}
    - {type: External, external: {metricName: queue, targetAverageValue: 4, metricSelector: {matchLabels: {q: r}}}}
`,
			map[string]any{
				"apiVersion": "autoscaling/v2", "spec.behavior.scaleDown.stabilizationWindowSeconds": 7.0, "metadata.annotations": nil,
				"spec.metrics.0.resource.target.type": "AverageValue", "spec.metrics.0.resource.target.averageValue": "1Gi",
				"spec.metrics.1.resource.target.type": "Utilization", "spec.metrics.2.pods.metric.name": "rate", "spec.metrics.2.pods.target.averageValue": "10",
				"spec.metrics.3.object.describedObject.name": "s", "spec.metrics.3.object.target.value": "5",
				"spec.metrics.4.external.metric.selector.matchLabels.q": "r", "spec.metrics.4.external.target.type": "AverageValue",
			},
		},
	}
}

func TestVersionsAreConverted(t *testing.T) {
	r := newRules()
	for _, c := range versionCases() {
		t.Run(c.name, func(t *testing.T) {
			src := &source{file: "a.yaml", line: 1, text: newText([]byte(c.text))}
			data, err := yaml.YAMLToJSON([]byte(c.text))
			if err != nil {
				t.Fatal(err)
			}
			var h header
			if err := json.Unmarshal(data, &h); err != nil {
				t.Fatal(err)
			}
			rule, _, message, _ := r.lookUp(h.APIVersion.(string), h.Kind.(string))
			if message != "" {
				t.Fatal(message)
			}
			object, problems := r.typed(src, data, h.APIVersion.(string), rule)
			if object == nil {
				t.Fatal(problems)
			}
			problems = append(problems, r.complete(src, rule, object)...)
			for _, p := range problems {
				if p.Severity == desired.Error && p.Code != "unsupported" {
					t.Error(p)
				}
			}
			value := asJSON(t, object)
			for path, want := range c.want {
				if diff := cmp.Diff(want, at(value, path)); diff != "" {
					t.Errorf("%s (-want +got):\n%s", path, diff)
				}
			}
		})
	}
}

func asJSON(t *testing.T, object any) any {
	t.Helper()
	data, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	var value any
	if err := json.Unmarshal(data, &value); err != nil {
		t.Fatal(err)
	}
	return value
}

// at follows a path of keys and indices; nil where it ends early.
func at(value any, path string) any {
	for step := range strings.SplitSeq(path, ".") {
		switch v := value.(type) {
		case map[string]any:
			value = v[step]
		case []any:
			if len(step) != 1 || int(step[0]-'0') >= len(v) {
				return nil
			}
			value = v[step[0]-'0']
		default:
			return nil
		}
	}
	return value
}

// Every version leads to a kind of the table, and an empty object of it can be
// converted, with and without its defaults.
func TestVersionsLeadSomewhere(t *testing.T) {
	r := newRules()
	for _, v := range versions() {
		rule, ok := r.kinds[v.to+" "+v.kind]
		if !ok {
			t.Errorf("%s %s leads to %s, which is not in the table", v.apiVersion(), v.kind, v.to)
			continue
		}
		written, object, problems := convert(&source{text: newText(nil)}, v.make(), v, rule)
		want := reflect.TypeOf(rule.make())
		if reflect.TypeOf(written) != want || reflect.TypeOf(object) != want {
			t.Errorf("%s %s becomes %T and %T: %v", v.apiVersion(), v.kind, written, object, problems)
		}
	}
}
