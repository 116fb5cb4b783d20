package manifest

import (
	"context"
	"strings"
	"testing"

	"github.com/tallyman-dev/tallyman/desired"
)

func TestGenerateNameIsTheContent(t *testing.T) {
	name := func(text string) string {
		t.Helper()
		s := mustLoad(t, NewLoader(), newTree(map[string]string{"a.yaml": text}), LoadOptions{})
		if list := s.Kind("Job"); len(list) == 1 {
			return list[0].Key.Name
		}
		t.Fatalf("no Job in %s", text)
		return ""
	}
	job := `{apiVersion: batch/v1, kind: Job, metadata: {generateName: migrate-}, spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: "c:1"}]}}}}`
	same := `{kind: Job, metadata: {"generateName": migrate-}, spec: {template: {spec: {containers: [{image: "c:1", name: c}], restartPolicy: Never}}}, apiVersion: batch/v1} # the same`
	first := name(job)
	if !strings.HasPrefix(first, "migrate-") || len(first) != len("migrate-")+10 || name(same) != first {
		t.Errorf("%s, %s", first, name(same))
	}
	if name(strings.Replace(job, "c:1", "c:2", 1)) == first {
		t.Error("other content has the same name")
	}
	long := name(strings.Replace(job, "migrate-", strings.Repeat("m", 60), 1))
	if len(long) != 63 {
		t.Errorf("%s has %d letters", long, len(long))
	}
	if got := name(strings.Replace(job, "generateName:", "name: fixed, generateName:", 1)); got != "fixed" {
		t.Errorf("a written name is lost: %s", got)
	}
	_, problems, err := NewLoader().Load(context.Background(), newTree(map[string]string{
		"a.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {generateName: a-}", "b.yaml": job, "c.yaml": same,
	}), desired.Revision{}, LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var missing, twice bool
	for _, p := range problems {
		missing = missing || p.File == "a.yaml" && p.Field == "metadata.name" && strings.Contains(p.Hint, "only a Job can do without")
		twice = twice || p.Code == "duplicate"
	}
	if !missing || !twice {
		t.Errorf("%+v", problems)
	}
}
