package manifest

import (
	"context"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tallyman-dev/tallyman/desired"
)

func TestProgressDeadlineAnnotation(t *testing.T) {
	object := func(kind, seconds, spec string) string {
		return fmt.Sprintf("%s\nmetadata: {name: x, annotations: {tallyman.dev/progress-deadline-seconds: %q}}\nspec: {selector: {matchLabels: {a: b}}, template: %s%s}\n",
			kind, seconds, templateText, spec)
	}
	const field = "metadata.annotations[tallyman.dev/progress-deadline-seconds]"
	tests := map[string]struct {
		manifest string
		want     []string
	}{
		"right":      {object("apiVersion: apps/v1\nkind: DaemonSet", "20", ""), nil},
		"not number": {object("apiVersion: apps/v1\nkind: StatefulSet", "2m", ", serviceName: s"), []string{"error invalid " + field}},
		"empty":      {object("apiVersion: apps/v1\nkind: ReplicaSet", "", ""), []string{"error invalid " + field}},
		"has field":  {object("apiVersion: apps/v1\nkind: Deployment", "20", ""), []string{"warning no-effect " + field}},
		"no rollout": {"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x, annotations: {tallyman.dev/progress-deadline-seconds: '20'}}\n", []string{"warning no-effect " + field}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, problems, err := NewLoader().Load(context.Background(), newTree(map[string]string{"a.yaml": test.manifest}), desired.Revision{SHA: "1"}, LoadOptions{})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, p := range problems {
				if p.Field == field {
					got = append(got, fmt.Sprintf("%s %s %s", p.Severity, p.Code, p.Field))
				}
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("%s\n%v", diff, problems)
			}
		})
	}
}

func TestFailoverAnnotation(t *testing.T) {
	tests := map[string]struct{ own, pods, want string }{
		"right":          {"fenced", "wait", ""},
		"wrong":          {"always", "wait", "metadata.annotations[tallyman.dev/failover]"},
		"wrong for pods": {"fenced", "never", "spec.template.metadata.annotations[tallyman.dev/failover]"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			text := fmt.Sprintf("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x, annotations: {tallyman.dev/failover: %s}}\nspec: {selector: {matchLabels: {a: b}}, "+
				"template: {metadata: {labels: {a: b}, annotations: {tallyman.dev/failover: %s}}, spec: {containers: [{name: c, image: c:1}]}}}\n", test.own, test.pods)
			_, problems, err := NewLoader().Load(context.Background(), newTree(map[string]string{"a.yaml": text}), desired.Revision{SHA: "1"}, LoadOptions{})
			if err != nil {
				t.Fatal(err)
			}
			var got string
			for _, p := range problems {
				if p.Severity == desired.Error {
					got += p.Field
				}
			}
			if got != test.want {
				t.Errorf("got %q, want %q: %v", got, test.want, problems)
			}
		})
	}
}
