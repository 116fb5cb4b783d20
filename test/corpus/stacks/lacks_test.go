package stacks

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tallyman-dev/tallyman/desired"
)

const lacking = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: ports}
spec:
  replicas: 2
  selector: {matchLabels: {app: ports}}
  template:
    metadata: {labels: {app: ports}}
    spec: {containers: [{name: c, image: c, ports: [{containerPort: 1, hostPort: 6700}]}]}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: one-port}
spec:
  selector: {matchLabels: {app: one-port}}
  template:
    metadata: {labels: {app: one-port}}
    spec: {containers: [{name: c, image: c, ports: [{containerPort: 1, hostPort: 6701}]}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: apart}
spec:
  replicas: 3
  serviceName: apart
  selector: {matchLabels: {app: apart}}
  template:
    metadata: {labels: {app: apart}}
    spec:
      affinity:
        podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: apart}}}]}
      containers: [{name: c, image: c}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: alone}
spec:
  serviceName: alone
  selector: {matchLabels: {app: alone}}
  template:
    metadata: {labels: {app: alone}}
    spec:
      affinity:
        podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: alone}}}]}
      containers: [{name: c, image: c}]
---
apiVersion: v1
kind: Pod
metadata: {name: armor}
spec:
  securityContext: {appArmorProfile: {type: Localhost, localhostProfile: deny}}
  containers: [{name: c, image: c}]
---
apiVersion: v1
kind: Pod
metadata: {name: seccomp}
spec: {containers: [{name: c, image: c, securityContext: {seccompProfile: {type: Localhost, localhostProfile: profiles/a.json}}}]}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: volume, labels: {is: there}}
spec: {accessModes: [ReadWriteOnce], capacity: {storage: 1M}, hostPath: {path: /tmp}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: good}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1M}}, selector: {matchLabels: {is: there}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: bad}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1M}}, selector: {matchLabels: {is: elsewhere}}}
---
apiVersion: v1
kind: Pod
metadata: {name: with-good}
spec: {volumes: [{name: v, persistentVolumeClaim: {claimName: good}}], containers: [{name: c, image: c}]}
---
apiVersion: v1
kind: Pod
metadata: {name: with-bad}
spec: {volumes: [{name: v, persistentVolumeClaim: {claimName: bad}}], containers: [{name: c, image: c}]}
`

const csiVolume = `
apiVersion: v1
kind: PersistentVolume
metadata: {name: v}
spec: {accessModes: [ReadWriteOnce], capacity: {storage: 1M}, csi: {driver: d, volumeHandle: h}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: c}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1M}}, volumeName: v, storageClassName: ""}
---
apiVersion: v1
kind: Pod
metadata: {name: p}
spec: {volumes: [{name: v, persistentVolumeClaim: {claimName: c}}], containers: [{name: c, image: c}]}
`

const probing = `
apiVersion: v1
kind: Pod
metadata: {name: a}
spec:
  containers:
    - name: c
      image: c
      resources: {limits: {cpu: %s}}
      readinessProbe: {exec: {command: [ok]}, timeoutSeconds: %d}
`

// A hundredth of a cpu is the least that the kernel gives.
func TestProbesNeedMoreThanToEnter(t *testing.T) {
	for _, c := range []struct {
		cpu     string
		timeout int
		lacks   bool
	}{{"2m", 1, true}, {"10m", 1, true}, {"12m", 1, false}, {"2m", 2, false}, {"1", 1, false}} {
		s := lackingStack(t, fmt.Sprintf(probing, c.cpu, c.timeout))
		if got := len(s.Lacks(0, Profiles{})) > 0; got != c.lacks {
			t.Errorf("cpu %s, %d s: lacks %t", c.cpu, c.timeout, got)
		}
	}
}

func lackingStack(t *testing.T, manifests string) *Stack {
	t.Helper()
	all, err := Read(t.Context(), corpusOf(t, map[string]string{"all.yaml": manifests}), "")
	if err != nil {
		t.Fatal(err)
	}
	return all[0]
}

func TestWhatOneNodeLacksIsInTheManifests(t *testing.T) {
	s := lackingStack(t, lacking)
	if s.Refused != nil {
		t.Fatal(s.Refused)
	}
	for name, c := range map[string]struct {
		has  Profiles
		want []string
	}{
		"nothing there": {Profiles{}, []string{"apart", "armor", "bad", "ports", "seccomp", "with-bad"}},
		"another":       {Profiles{AppArmor: []string{"other"}, Seccomp: []string{"a.json"}}, []string{"apart", "armor", "bad", "ports", "seccomp", "with-bad"}},
		"profiles":      {Profiles{AppArmor: []string{"deny"}, Seccomp: []string{"profiles/a.json"}}, []string{"apart", "bad", "ports", "with-bad"}},
	} {
		var got []string
		for k := range s.Lacks(0, c.has) {
			got = append(got, k.Name)
		}
		slices.Sort(got)
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// One object that lacks nothing takes the excuse from the whole.
func TestEveryObjectThatIsNotReadyNeedsAnExcuse(t *testing.T) {
	s := lackingStack(t, lacking)
	keys := slices.Collect(maps.Keys(s.Lacks(0, Profiles{})))
	if s.Excuse(0, keys, Profiles{}) == "" {
		t.Error("no excuse")
	}
	if e := s.Excuse(0, append(keys, desired.Key{Group: "apps", Kind: "StatefulSet", Namespace: "default", Name: "alone"}), Profiles{}); e != "" {
		t.Errorf("excuse: %s", e)
	}
	if e := s.Excuse(0, nil, Profiles{}); e != "" {
		t.Errorf("excuse for nothing: %s", e)
	}
	for manifests, excused := range map[string]bool{
		"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, image: c, ports: [{containerPort: 0}]}]}":            true,
		"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {schedulerName: own, containers: [{name: c, image: c}]}":                     false,
		"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, image: c, envFrom: [{secretRef: {name: nobody}}]}]}": true,
		csiVolume: true,
		csiVolume + "---\napiVersion: storage.k8s.io/v1\nkind: CSIDriver\nmetadata: {name: d}\nspec: {}": false,
	} {
		s := lackingStack(t, manifests)
		pod := desired.Key{Kind: "Pod", Namespace: "default", Name: "p"}
		if got := s.Excuse(0, []desired.Key{pod}, Profiles{}) != ""; got != excused {
			t.Errorf("excuse %t: %s", got, manifests)
		}
	}
}

func TestResultsOfPartsGoTogether(t *testing.T) {
	table := filepath.Join(t.TempDir(), "build", "table.tsv")
	all := []*Stack{{Name: "a"}, {Name: "b"}, {Name: "c"}}
	want := []Result{{Name: "a", Took: 1500 * time.Millisecond}, {Name: "b", Failed: "push", Reason: `say "no"` + "\n\tto it"}, {Name: "c", Failed: "converge", Reason: "never", Kubernetes: "nor there"}}
	for _, text := range []string{"2/2", "1/2", "2/2"} {
		part, err := ParsePart(text)
		if err != nil {
			t.Fatal(err)
		}
		older, err := ReadResults(table)
		if err != nil {
			t.Fatal(err)
		}
		var newer []Result
		for _, s := range part.of(all) {
			newer = append(newer, want[slices.Index(all, s)])
		}
		older = append(older, Result{Name: "gone"})
		if err := Write(table, Merge(all, older, newer)); err != nil {
			t.Fatal(err)
		}
	}
	got, err := ReadResults(table)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{"0/2", "3/2", "1", "a/b", "1/0"} {
		if _, err := ParsePart(bad); err == nil {
			t.Errorf("%q is taken for a part", bad)
		}
	}
}

// TestAnObjectThatIsWrittenTwiceCannotChangeInKubernetesEither has two files
// write one StorageClass.
func TestAnObjectThatIsWrittenTwiceCannotChangeInKubernetesEither(t *testing.T) {
	class := func(tier string) string {
		return "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: fast}\nprovisioner: a.example.com\nparameters: {tier: " + tier + "}\n"
	}
	for second, refused := range map[string]bool{"a": false, "b": true} {
		all, err := Read(t.Context(), corpusOf(t, map[string]string{"one.yaml": class("a"), "two.yaml": class(second)}), "")
		if err != nil {
			t.Fatal(err)
		}
		s := all[0]
		if (s.Refused != nil) != refused {
			t.Fatalf("tier %s then: refused %v", second, s.Refused)
		}
		if refused && s.Excuse(1, nil, Profiles{}) == "" {
			t.Errorf("%s is to converge", s.Refused)
		}
	}
}
