package statustest

import (
	"fmt"
	"time"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// Stateful is a cluster with storage, batch work and autoscalers, in every
// state that these are in.
func Stateful() *nodes.Overview {
	o := Healthy()
	addSets(o)
	addBatch(o)
	addAutoscalers(o)
	addStorage(o)
	return o
}

func addSets(o *nodes.Overview) {
	set, daemons := key("apps", "StatefulSet", "shop", "postgres"), key("apps", "DaemonSet", "monitoring", "node-exporter")
	o.Objects = append(o.Objects,
		nodes.ObjectHealth{
			Key: set, From: desired.Place{File: "shop/postgres.yaml", Line: 1}, Health: nodes.Progressing, Created: ago(40 * 24 * time.Hour), Template: "7d9f6c5b8",
			Reason: "2 of 3 pods updated, pod postgres-0 waits for postgres-1 to be ready", Wanted: 3, Current: 3, Updated: 2, Ready: 2, Available: 2,
		},
		nodes.ObjectHealth{
			Key: daemons, From: desired.Place{File: "monitoring/exporter.yaml", Line: 1}, Health: nodes.Healthy, Created: ago(40 * 24 * time.Hour), Template: "5f8c7d6b4",
			Wanted: 1, Current: 1, Updated: 1, Ready: 1, Available: 1,
		},
		pod(daemons, "node-exporter-x7k2p", "registry.example.org/node-exporter:1.9", 40))
	for i := range 3 {
		p := pod(set, fmt.Sprintf("postgres-%d", i), "registry.example.org/postgres:16.4", 41+i)
		if i == 1 {
			p.Health, p.Reason, p.Created, p.Pod.Status.Ready = nodes.Progressing, "container app is starting", ago(8*time.Second), false
		}
		o.Objects = append(o.Objects, p)
	}
}

func addBatch(o *nodes.Overview) {
	job := func(name string, owner desired.Key, health nodes.Health, reason string, j nodes.JobOverview) {
		o.Objects = append(o.Objects, nodes.ObjectHealth{Key: key("batch", "Job", "shop", name), Owner: owner, Health: health, Reason: reason, Created: j.Started, Job: &j})
	}
	run := func(started, took time.Duration, completions, succeeded, failed int, condition, reason string) nodes.JobOverview {
		return nodes.JobOverview{
			Completions: completions, Succeeded: succeeded, Failed: failed, Condition: condition, Reason: reason, Started: ago(started), Finished: ago(started - took),
		}
	}
	cron := key("batch", "CronJob", "shop", "nightly-report")
	o.Objects = append(o.Objects, nodes.ObjectHealth{
		Key: cron, From: desired.Place{File: "shop/report.yaml", Line: 1}, Health: nodes.Degraded, Created: ago(40 * 24 * time.Hour),
		Reason:  "Job nightly-report-29376900 failed: BackoffLimitExceeded; last run 2026-03-14T01:00:00Z, next 2026-03-15T01:00:00Z",
		CronJob: &nodes.CronJobOverview{Schedule: "0 2 * * *", TimeZone: "Europe/Berlin", Last: ago(13 * time.Hour), Next: Now.Add(11 * time.Hour), Succeeded: ago(37 * time.Hour)},
	})
	job("nightly-report-29376900", cron, nodes.Degraded, "BackoffLimitExceeded: Job has reached the specified backoff limit; pod nightly-report-29376900-k2x9d: Error: exit code 1",
		run(13*time.Hour, 7*time.Minute, 1, 0, 4, "Failed", "BackoffLimitExceeded"))
	job("nightly-report-29375460", cron, nodes.Healthy, "completed, 1 success", run(37*time.Hour, 94*time.Second, 1, 1, 0, "Complete", "CompletionsReached"))
	job("migrate", desired.Key{}, nodes.Healthy, "completed, 3 successes", run(26*time.Hour, 42*time.Second, 3, 3, 1, "Complete", "CompletionsReached"))
	job("import", desired.Key{}, nodes.Degraded, "DeadlineExceeded: Job was active longer than specified deadline", run(3*time.Hour, 10*time.Minute, 5, 2, 1, "Failed", "DeadlineExceeded"))
	suspended := key("batch", "CronJob", "shop", "cleanup")
	o.Objects = append(o.Objects, nodes.ObjectHealth{
		Key: suspended, From: desired.Place{File: "shop/cleanup.yaml", Line: 1}, Health: nodes.Suspended, Reason: "suspended; no run yet", Created: ago(5 * time.Hour),
		CronJob: &nodes.CronJobOverview{Schedule: "*/15 * * * *", Suspended: true},
	})
}

func addAutoscalers(o *nodes.Overview) {
	add := func(name string, health nodes.Health, reason string, a nodes.AutoscalerOverview) {
		a.Target = key("apps", "Deployment", "shop", name)
		o.Objects = append(o.Objects, nodes.ObjectHealth{
			Key: key("autoscaling", "HorizontalPodAutoscaler", "shop", name), From: desired.Place{File: "shop/scaling.yaml", Line: 1},
			Health: health, Reason: reason, Created: ago(40 * 24 * time.Hour), Autoscaler: &a,
		})
	}
	add("web", nodes.Healthy, "5 replicas, of 2 to 10; by cpu resource utilization (percentage of request)", nodes.AutoscalerOverview{
		Replicas: 5, Min: 2, Max: 10, Scaled: ago(4 * time.Minute),
		Metrics: []nodes.MetricOverview{{Name: "cpu", Current: "64%", Target: "70%"}, {Name: "requests_per_second", Current: "112500m", Target: "150"}},
		Limits:  []string{"ScaleDownStabilized: recent recommendations were higher than current one, applying the highest recent recommendation"},
	})
	problem := "FailedGetPodsMetric: the HPA was unable to compute the replica count: the Cluster object has no query for metric queue_length (spec.metrics.queries)"
	add("catalog", nodes.Degraded, "ScalingActive is false: "+problem, nodes.AutoscalerOverview{
		Replicas: 3, Min: 3, Max: 6, Metrics: []nodes.MetricOverview{{Name: "queue_length", Target: "30"}}, Problem: problem,
	})
}

func addStorage(o *nodes.Overview) {
	claim := func(name string, owner desired.Key, health nodes.Health, reason string, s nodes.StorageOverview) {
		s.AccessModes = []string{"ReadWriteOnce"}
		o.Objects = append(o.Objects, nodes.ObjectHealth{Key: key("", "PersistentVolumeClaim", "shop", name), Owner: owner, Health: health, Reason: reason, Created: ago(40 * 24 * time.Hour), Storage: &s})
		if s.Volume != "" && s.Phase == "Bound" {
			v := s
			v.Volume, v.Pods, v.Claim = "", nil, key("", "PersistentVolumeClaim", "shop", name)
			o.Objects = append(o.Objects, nodes.ObjectHealth{Key: key("", "PersistentVolume", "", s.Volume), Owner: v.Claim, Health: nodes.Healthy, Storage: &v})
		}
	}
	set := key("apps", "StatefulSet", "shop", "postgres")
	for i := range 3 {
		claim(fmt.Sprintf("data-postgres-%d", i), set, nodes.Healthy, "", nodes.StorageOverview{
			Phase: "Bound", Volume: fmt.Sprintf("pvc-3c1f9a52-7d40-4e1b-9a6e-0b5d7e2f4a8%d", i), Class: "local", Capacity: "20Gi", Node: "quay-1", Pods: []string{fmt.Sprintf("postgres-%d", i)},
		})
	}
	claim("uploads", desired.Key{}, nodes.Healthy, "", nodes.StorageOverview{
		Phase: "Bound", Volume: "pvc-a5b0c7d2-51f3-4c86-8f0e-6f1d2c3b4a59", Class: "local", Capacity: "100Gi", Node: "quay-1",
		Unenforced: "the file system ext4 of /var/lib/tallyman has no project quotas: mount it with prjquota", Pods: []string{"web-6f7c9b8d4-a0000", "web-6f7c9b8d4-a0001", "web-6f7c9b8d4-a0002", "web-6f7c9b8d4-a0003", "web-6f7c9b8d4-a0004"},
	})
	claim("archive", desired.Key{}, nodes.Degraded, "StorageClass fast does not exist and no PersistentVolume of it is free: write the class or name another", nodes.StorageOverview{Phase: "Pending", Class: "fast", Capacity: "1Ti"})
	claim("scratch", desired.Key{}, nodes.Healthy, "waits for a pod that uses it", nodes.StorageOverview{Phase: "Pending", Class: "local", Capacity: "5Gi"})
	claim("old-index", desired.Key{}, nodes.Degraded, "its PersistentVolume nfs-index is gone", nodes.StorageOverview{Phase: "Lost", Volume: "nfs-index", Capacity: "50Gi"})
	loose := func(name, phase string, health nodes.Health, reason string, s nodes.StorageOverview) {
		s.Phase, s.AccessModes = phase, []string{"ReadWriteOnce"}
		o.Objects = append(o.Objects, nodes.ObjectHealth{Key: key("", "PersistentVolume", "", name), Owner: s.Claim, Health: health, Reason: reason, Storage: &s})
	}
	until := Now.Add(21 * time.Hour)
	was := key("", "PersistentVolumeClaim", "shop", "sessions")
	loose("pvc-0f9e8d7c-6b5a-4948-b7a6-958473625140", "Released", nodes.Healthy, "released by "+was.String()+"; its data comes back with a claim of that name until "+until.Format(time.RFC3339),
		nodes.StorageOverview{Claim: was, Class: "local", Capacity: "10Gi", Node: "quay-1", Until: until})
	was.Name = "ledger"
	loose("pvc-77aa66bb-55cc-44dd-93ee-22ff11aa00bb", "Released", nodes.Healthy, "released by "+was.String()+"; its data is kept (reclaim policy Retain) and comes back with a claim of that name",
		nodes.StorageOverview{Claim: was, Class: "keep", Capacity: "30Gi", Node: "quay-1"})
	snapshot := func(name string, health nodes.Health, reason string, s nodes.StorageOverview) {
		o.Objects = append(o.Objects, nodes.ObjectHealth{Key: key("snapshot.storage.k8s.io", "VolumeSnapshot", "shop", name), Health: health, Reason: reason, Created: ago(2 * time.Hour), Storage: &s})
	}
	snapshot("before-upgrade", nodes.Healthy, "", nodes.StorageOverview{Phase: "Ready", Volume: "snapcontent-5b1e7c11-0d0a-4a77-8f6e-3c2b1a09d8e7", Capacity: "20Gi", Node: "quay-1"})
	snapshot("uploads-friday", nodes.Progressing, "not ready: VolumeInUse: a pod uses volume pvc-a5b0c7d2-51f3-4c86-8f0e-6f1d2c3b4a59: a directory is copied while nobody writes to it, so stop its pods for a moment",
		nodes.StorageOverview{Phase: "Pending", Volume: "snapcontent-0a9b8c7d-6e5f-4a3b-9c2d-1e0f9a8b7c6d", Capacity: "100Gi", Node: "quay-1"})
	loose("nfs-media", "Available", nodes.Healthy, "", nodes.StorageOverview{Class: "nfs", Capacity: "500Gi"})
}
