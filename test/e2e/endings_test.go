//go:build e2e

package e2e_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/runtime/runtimetest/image"
	"github.com/tallyman-dev/tallyman/nodes/runtime/runtimetest/registry"
	"github.com/tallyman-dev/tallyman/test/machine"
)

const endingManifests = `
apiVersion: v1
kind: Pod
metadata: {name: good}
spec: {restartPolicy: Never, containers: [{name: main, image: IMAGE, args: [tell, /dev/termination-log, all done, "0"]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: bad}
spec: {restartPolicy: Never, containers: [{name: main, image: IMAGE, terminationMessagePolicy: FallbackToLogsOnError, args: [end, last words, "3"]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: again}
spec: {restartPolicy: OnFailure, containers: [{name: main, image: IMAGE, args: [end, again, "5"]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: first-fails}
spec: {restartPolicy: Never, initContainers: [{name: init, image: IMAGE, args: [end, "", "4"]}], containers: [{name: main, image: IMAGE}]}
---
apiVersion: v1
kind: Pod
metadata: {name: never-pulled}
spec: {containers: [{name: main, image: REGISTRY/inside:absent, imagePullPolicy: Never}]}
---
apiVersion: v1
kind: Pod
metadata: {name: root-refused}
spec: {containers: [{name: main, image: IMAGE, securityContext: {runAsNonRoot: true}}]}
---
apiVersion: v1
kind: Pod
metadata: {name: no-such-dir}
spec: {volumes: [{name: v, hostPath: {path: /nothing/there, type: Directory}}], containers: [{name: main, image: IMAGE, volumeMounts: [{name: v, mountPath: /v}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: too-big}
spec: {containers: [{name: main, image: IMAGE, resources: {requests: {cpu: 1000}}}]}
---
apiVersion: v1
kind: Pod
metadata: {name: no-program}
spec: {containers: [{name: main, image: IMAGE, command: [/nothing]}]}
---
apiVersion: v1
kind: Secret
metadata: {name: login}
type: kubernetes.io/dockerconfigjson
stringData: {.dockerconfigjson: '{"auths": {"CLOSED": {"username": "ann", "password": "pass"}}}'}
---
apiVersion: v1
kind: Pod
metadata: {name: with-login}
spec: {imagePullSecrets: [{name: login}], containers: [{name: main, image: CLOSED/inside:1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: locked-out}
spec: {containers: [{name: main, image: CLOSED/inside:2}]}
`

// TestEndings deploys pods that end, or never begin, and looks at the words.
func TestEndings(t *testing.T) {
	w := newWorld(t)
	closed, err := registry.Start(t.Context(), registry.Options{Dir: filepath.Join(w.Dir, "closed"), User: "ann", Password: "pass"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := closed.Stop(); err != nil {
			t.Error(err)
		}
	})
	binary, err := image.BuildBinary(t.Context(), inside, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	built, err := image.Build(image.Spec{Binaries: map[string]string{"/program": binary}, Entrypoint: []string{"/program"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, tag := range []string{":1", ":2"} {
		if err := image.Push(t.Context(), closed.Addr+"/inside"+tag, built, "ann", "pass"); err != nil {
			t.Fatal(err)
		}
	}
	w.clone.Write("pods.yaml", strings.NewReplacer("IMAGE", insideImage, "REGISTRY", machine.RegistryAddress, "CLOSED", closed.Addr).Replace(endingManifests))
	w.clone.Commit("endings")
	if r := w.clone.Push("-o", "tally.wait=false"); r.Code != 0 {
		t.Fatal(r.Err)
	}
	for name, want := range map[string][]string{
		"good":         {"Succeeded", "Completed", "all done"},
		"bad":          {"Failed", "Error", "last words"},
		"again":        {"CrashLoopBackOff", "code 5"},
		"first-fails":  {"Failed", "Error"},
		"never-pulled": {"ErrImageNeverPull"},
		"root-refused": {"CreateContainerConfigError", "runAsNonRoot"},
		"no-such-dir":  {"/nothing/there"},
		"too-big":      {"0/1 nodes fit", "cpu (want 1k"},
		"no-program":   {"/nothing"},
		"locked-out":   {"ImagePull", "inside:2"},
	} {
		t.Run(name, func(t *testing.T) { w.in(t).shows(name, want) })
	}
	t.Run("with login", func(t *testing.T) { w.in(t).ip("with-login") })
}

// shows waits until a pod's health, reason, phase and containers say the words.
func (w *world) shows(name string, words []string) {
	w.Eventually(patience, "pod "+name, func() error {
		o, err := w.Overview()
		if err != nil {
			return err
		}
		var text string
		for _, object := range o.Objects {
			if object.Key.Kind == "Pod" && object.Key.Name == name {
				text = describe(object)
			}
		}
		for _, word := range words {
			if !strings.Contains(text, word) {
				return fmt.Errorf("no %q in %s", word, text)
			}
		}
		return nil
	})
}

func describe(object nodes.ObjectHealth) string {
	text := fmt.Sprintf("%s: %s", object.Health, object.Reason)
	if object.Pod != nil {
		text += fmt.Sprintf("\n%s %+v", object.Pod.Status.Phase, object.Pod.Status)
	}
	return text
}
