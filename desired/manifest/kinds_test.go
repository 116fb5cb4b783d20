package manifest

import (
	"strings"
	"testing"

	"github.com/tallyman-dev/tallyman/desired"
)

// kindCase is one kind with the least that Kubernetes accepts, and with
// something that it refuses.
type kindCase struct {
	kind, valid, invalid string
	// field is where the problem of invalid is.
	field string
}

const (
	templateText = `{metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: c:1}]}}`
	jobText      = `{template: {spec: {restartPolicy: Never, containers: [{name: c, image: c:1}]}}}`
	claimText    = `{accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}`
)

func kindCases() []kindCase {
	return []kindCase{
		{
			"apps/v1 StatefulSet", `spec: {serviceName: s, selector: {matchLabels: {a: b}}, template: ` + templateText + `}`,
			`spec: {serviceName: s, selector: {matchLabels: {a: c}}, template: ` + templateText + `}`, "spec.template.metadata.labels",
		},
		{
			"apps/v1 DaemonSet", `spec: {selector: {matchLabels: {a: b}}, template: ` + templateText + `}`,
			`spec: {selector: {matchLabels: {a: b}}, updateStrategy: {rollingUpdate: {maxUnavailable: 0}}, template: ` + templateText + `}`, "spec.updateStrategy.rollingUpdate.maxUnavailable",
		},
		{
			"v1 ReplicationController", `spec: {template: ` + templateText + `}`,
			`spec: {selector: {a: c}, template: ` + templateText + `}`, "spec.template.metadata.labels",
		},
		{"apps/v1 ControllerRevision", `revision: 1
data: {a: b}`, `revision: -1
data: {}`, "revision"},
		{
			"batch/v1 Job", `spec: ` + jobText,
			`spec: {selector: {matchLabels: {batch.kubernetes.io/controller-uid: x}}, template: {spec: {restartPolicy: Never, containers: [{name: c, image: c:1}]}}}`, "spec.selector",
		},
		{
			"batch/v1 CronJob", `spec: {schedule: "* * * * *", jobTemplate: {spec: ` + jobText + `}}`,
			`spec: {schedule: "61 * * * *", jobTemplate: {spec: ` + jobText + `}}`, "spec.schedule",
		},
		{
			"autoscaling/v2 HorizontalPodAutoscaler", `spec: {maxReplicas: 2, scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: d}}`,
			`spec: {maxReplicas: 2, minReplicas: 0, scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: d}}`, "spec.minReplicas",
		},
		{"v1 PersistentVolumeClaim", `spec: ` + claimText, `spec: {accessModes: [ReadWriteOnce]}`, "spec.resources[storage]"},
		{
			"v1 PersistentVolume", `spec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce], hostPath: {path: /a}}`,
			`spec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce]}`, "spec",
		},
		{"storage.k8s.io/v1 StorageClass", `provisioner: a.example.com`, `provisioner: ""`, "provisioner"},
		{"storage.k8s.io/v1 CSIDriver", `spec: {}`, `spec: {volumeLifecycleModes: [Forever]}`, "spec.volumeLifecycleModes"},
		{"storage.k8s.io/v1 VolumeAttributesClass", `driverName: a.example.com
parameters: {a: b}`, `driverName: ""
parameters: {a: b}`, "driverName"},
		{"storage.k8s.io/v1 CSINode", `spec: {drivers: []}`, `spec: {drivers: [{name: a.example.com, nodeID: ""}]}`, "spec.drivers[0].nodeID"},
		{"storage.k8s.io/v1 CSIStorageCapacity", `storageClassName: a`, `storageClassName: A_`, "storageClassName"},
		{
			"storage.k8s.io/v1 VolumeAttachment", `spec: {attacher: a.example.com, nodeName: one, source: {persistentVolumeName: p}}`,
			`spec: {attacher: a.example.com, source: {persistentVolumeName: p}}`, "spec.nodeName",
		},
		{"v1 ConfigMap", "data: {a: b}", "data: {a: b}\nbinaryData: {a: YQ==}", "data[a]"},
		{"v1 Secret", "type: kubernetes.io/dockerconfigjson\nstringData: {.dockerconfigjson: '{}'}", "type: kubernetes.io/dockerconfigjson\nstringData: {.dockerconfigjson: '{'}", "data[.dockerconfigjson]"},
		{"v1 Secret", "type: kubernetes.io/dockercfg\nstringData: {.dockercfg: '{}'}", "type: kubernetes.io/dockercfg", "data[.dockercfg]"},
		{"v1 Secret", "type: kubernetes.io/tls\nstringData: {tls.crt: a, tls.key: b}", "type: kubernetes.io/tls\nstringData: {tls.crt: a}", "data[tls.key]"},
		{"v1 Secret", "type: kubernetes.io/basic-auth\nstringData: {username: a}", "type: kubernetes.io/basic-auth\nstringData: {user: a}", "data["},
		{"v1 Secret", "type: kubernetes.io/ssh-auth\nstringData: {ssh-privatekey: a}", "type: kubernetes.io/ssh-auth", "data[ssh-privatekey]"},
		{"v1 Secret", "immutable: true\ndata: {a: YQ==}", "data: {a: '%'}", "data[a]"},
		{"v1 ResourceQuota", `spec: {hard: {pods: 3}}`, `spec: {hard: {pods: -3}}`, "spec.hard[pods]"},
		{"v1 LimitRange", `spec: {limits: [{type: Container, max: {cpu: 1}}]}`, `spec: {limits: [{type: Container, max: {cpu: 1}, min: {cpu: 2}}]}`, "spec.limits[0].min[cpu]"},
		{"v1 Node", `spec: {unschedulable: true, taints: [{key: a, effect: NoExecute}]}`, `spec: {taints: [{key: a, effect: Never}]}`, "spec.taints[0].effect"},
		{"v1 Node", `spec: {taints: [{key: a, effect: NoExecute}, {key: a, effect: NoSchedule}]}`, `spec: {taints: [{key: a, effect: NoExecute}, {key: a, effect: NoExecute}]}`, "spec.taints[1]"},
		{"node.k8s.io/v1 RuntimeClass", `handler: runsc`, `handler: Run_SC`, "handler"},
		{"coordination.k8s.io/v1 Lease", `spec: {leaseDurationSeconds: 1}`, `spec: {leaseDurationSeconds: 0}`, "spec.leaseDurationSeconds"},
	}
}

// Kubernetes' rules hold for every kind, those that do not work here included.
func TestKindsAreValidated(t *testing.T) {
	r := newRules()
	for _, c := range kindCases() {
		t.Run(strings.ReplaceAll(c.kind, "/", ".")+" "+c.field, func(t *testing.T) {
			apiVersion, kind, _ := strings.Cut(c.kind, " ")
			head := "apiVersion: " + apiVersion + "\nkind: " + kind + "\nmetadata: {name: x}\n"
			if errs := mistakes(r.parseFile("a.yaml", []byte(head+c.valid))); len(errs) > 0 {
				t.Errorf("refused: %v", errs)
			}
			found := false
			for _, p := range mistakes(r.parseFile("a.yaml", []byte(head+c.invalid))) {
				found = found || strings.HasPrefix(p.Field, c.field)
			}
			if !found {
				t.Errorf("nothing is wrong with %s in %s", c.field, c.invalid)
			}
		})
	}
}

// mistakes are the errors other than that a kind or field does not work yet.
func mistakes(p *parsed) []desired.Problem {
	var errs []desired.Problem
	for _, problem := range p.problems {
		if problem.Severity == desired.Error && problem.Code != "unsupported" {
			errs = append(errs, problem)
		}
	}
	return errs
}
