package tallyman_test

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/desired/manifest"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner"
)

// TestExampleRepositoryPlans reads examples-repo as a push would be read and
// plans it from nothing on one node.
func TestExampleRepositoryPlans(t *testing.T) {
	snapshot, problems, err := manifest.NewLoader().Load(t.Context(), os.DirFS("examples-repo"),
		desired.Revision{SHA: strings.Repeat("1", 40), Message: "example"}, manifest.LoadOptions{Path: "."})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if p.Severity != desired.Note {
			t.Errorf("the example has a problem: %s: %s", p.Severity, p)
		}
	}
	if snapshot == nil {
		t.Fatal("no snapshot")
	}

	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	state, _ := planner.Next(planner.New(planner.Config{SecretKey: bytes.Repeat([]byte("k"), 32)}), planner.Change{
		Nodes:   []nodes.NodeState{{Node: exampleNode(), Ready: true, Since: now}},
		Reports: []nodes.Report{{Node: "one", Complete: true}},
	}, now)
	_, plan := planner.Next(state, planner.Change{Snapshot: snapshot, Source: "example"}, now)
	if plan.Hold != nil {
		t.Fatalf("held: %s", plan.Hold.Why)
	}
	starts := 0
	for _, action := range plan.Actions {
		if action.Verb == "start" {
			starts++
		}
	}
	// hello: 3 in production and 1 in staging; front and visits: 1 in each.
	if starts != 8 {
		var text bytes.Buffer
		_ = plan.Text(&text)
		t.Errorf("%d pods start, want 8:\n%s\n%+v", starts, text.String(), plan.Waiting)
	}
}

func exampleNode() nodes.Node {
	resources := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("2"), corev1.ResourceMemory: resource.MustParse("4Gi"), corev1.ResourcePods: resource.MustParse("110"),
	}
	return nodes.Node{
		Name: "one", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, PodCIDR: netip.MustParsePrefix("10.244.0.0/24"),
		Capacity: resources, Allocatable: resources, OS: "linux", Arch: "amd64",
	}
}

// TestPagesLinkToWhatIsThere follows every relative link of the pages.
func TestPagesLinkToWhatIsThere(t *testing.T) {
	pages, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	guides, err := filepath.Glob("docs/install/*.md")
	if err != nil {
		t.Fatal(err)
	}
	pages = append(append(pages, guides...), "README.md", "examples-repo/README.md")
	link := regexp.MustCompile(`\]\(([^)#]+)(?:#[^)]*)?\)`)
	for _, page := range pages {
		content, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, match := range link.FindAllStringSubmatch(string(content), -1) {
			if strings.Contains(match[1], "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), match[1])); err != nil {
				t.Errorf("%s links to %s: %v", page, match[1], err)
			}
		}
	}
}

// TestPagesShowManifestsThatWork reads every manifest of the guides as a push
// would be read.
func TestPagesShowManifestsThatWork(t *testing.T) {
	block := regexp.MustCompile(`(?m)^    apiVersion:.*\n(?:(?:    .*)?\n)*`)
	found := 0
	for _, page := range []string{"docs/coming-from.md", "docs/manifests.md"} {
		content, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range block.FindAllString(string(content), -1) {
			found++
			text = strings.ReplaceAll("\n"+text, "\n    ", "\n")
			files := fstest.MapFS{"page.yaml": &fstest.MapFile{Data: []byte(text)}}
			_, problems, err := manifest.NewLoader().Load(t.Context(), files, desired.Revision{SHA: strings.Repeat("1", 40)}, manifest.LoadOptions{Path: "."})
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range problems {
				if p.Severity == desired.Error {
					t.Errorf("%s shows what would be refused: %s\n%s", page, p, text)
				}
			}
		}
	}
	if found < 4 {
		t.Errorf("%d manifests found", found)
	}
}

// TestUnitSharesTheMountNamespace keeps settings out of the systemd unit that
// would hide the pods' namespaces and volumes from containerd.
func TestUnitSharesTheMountNamespace(t *testing.T) {
	unit, err := os.ReadFile("docs/install/tally.service")
	if err != nil {
		t.Fatal(err)
	}
	private := regexp.MustCompile(`(?m)^(Protect|Private|ReadOnlyPaths|ReadWritePaths|InaccessiblePaths|BindPaths|BindReadOnlyPaths|TemporaryFileSystem|RootDirectory|RootImage|MountFlags|DynamicUser|NoExecPaths|StateDirectory=.*:)[A-Za-z]*=`)
	for _, found := range private.FindAllString(string(unit), -1) {
		t.Errorf("the unit says %s: containerd would not see what tally mounts", found)
	}
	if !strings.Contains(string(unit), "\nKillMode=process\n") {
		t.Error("the unit would end keeper and containers with tally: KillMode=process is missing")
	}
}
