package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestHugePagesOfTheMachine(t *testing.T) {
	dir := t.TempDir()
	for size, count := range map[string]int{"64": 0, "2048": 3, "1048576": 2} {
		path := filepath.Join(dir, "hugepages-"+size+"kB")
		if err := os.Mkdir(path, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(path, "nr_hugepages"), fmt.Appendln(nil, count), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	capacity, err := hugePages(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := corev1.ResourceList{"hugepages-2Mi": resource.MustParse("6Mi"), "hugepages-1Gi": resource.MustParse("2Gi")}
	if len(capacity) != len(want) {
		t.Errorf("capacity %v", capacity)
	}
	for name, q := range want {
		if got := capacity[name]; !got.Equal(q) {
			t.Errorf("%s: %s, want %s", name, got.String(), q.String())
		}
	}
	for memory, want := range map[string]string{"3Gi": "1018Mi", "1Gi": "0"} {
		allocatable := corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(memory)}
		withoutHugePages(capacity, allocatable)
		if got := allocatable[corev1.ResourceMemory]; !got.Equal(resource.MustParse(want)) {
			t.Errorf("of %s memory %s is left, want %s", memory, got.String(), want)
		}
	}
	if none, err := hugePages(filepath.Join(dir, "absent")); err != nil || len(none) != 0 {
		t.Errorf("a kernel without: %v, %v", none, err)
	}
}
