package status

import (
	"fmt"
	"strings"
	"testing"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/status/statustest"
)

func TestStorageIsShown(t *testing.T) {
	s, _ := newServer(t, statustest.Stateful())
	for path, parts := range map[string][]string{
		"/storage": {
			"data-postgres-0", "pvc-3c1f9a52-7d40-4e1b-9a6e-0b5d7e2f4a80", "/object/Pod/shop/postgres-0", "not enforced", "2 more",
			"Volumes without a claim", "storage.keep", "deleted in", "nfs-media", "before-upgrade", "stop its pods", "StorageClass fast does not exist",
		},
		"/": {"cpu <strong>64%</strong> of 70%", "cannot judge"},
		"/object/PersistentVolumeClaim/shop/uploads":                          {"no project quotas", "RWO", "/object/Pod/shop/web-6f7c9b8d4-a0004"},
		"/object/HorizontalPodAutoscaler.autoscaling/shop/web":                {"5 replicas, of 2 to 10", "112500m of 150", "ScaleDownStabilized"},
		"/object/CronJob.batch/shop/nightly-report":                           {"Europe/Berlin", "Last success"},
		"/object/PersistentVolume/-/pvc-0f9e8d7c-6b5a-4948-b7a6-958473625140": {"2026-03-15 12:09:26 UTC", "shop/sessions"},
	} {
		body := get(t, s.Handler(), path).Body.String()
		for _, part := range parts {
			if !strings.Contains(body, part) {
				t.Errorf("%s lacks %q", path, part)
			}
		}
	}
}

// TestLongStorageHasPages: the overview stays short, the pages hold everything once.
func TestLongStorageHasPages(t *testing.T) {
	o := statustest.Healthy()
	for i := range 130 {
		o.Objects = append(o.Objects,
			nodes.ObjectHealth{Key: desired.Key{Kind: "PersistentVolumeClaim", Namespace: "shop", Name: fmt.Sprintf("claim-%03d", i)}, Health: nodes.Healthy, Storage: &nodes.StorageOverview{Phase: "Bound"}},
			nodes.ObjectHealth{Key: desired.Key{Kind: "PersistentVolume", Name: fmt.Sprintf("free-%03d", i)}, Health: nodes.Healthy, Storage: &nodes.StorageOverview{Phase: "Available"}})
	}
	s, _ := newServer(t, o)
	front := get(t, s.Handler(), "/").Body.String()
	if n := strings.Count(front, ">claim-"); n != overviewClaims || strings.Count(front, ">free-") != overviewLoose || !strings.Contains(front, "all claims, snapshots and volumes") {
		t.Errorf("the overview shows %d claims", n)
	}
	all := ""
	for page := 1; page <= 3; page++ {
		all += get(t, s.Handler(), fmt.Sprintf("/storage?page=%d", page)).Body.String()
	}
	for i := range 130 {
		for _, name := range []string{fmt.Sprintf(">claim-%03d<", i), fmt.Sprintf(">free-%03d<", i)} {
			if n := strings.Count(all, name); n != 1 {
				t.Errorf("%s is shown %d times", name, n)
			}
		}
	}
}
