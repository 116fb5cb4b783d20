// Package tallyman_test holds the rules of the repository as tests.
package tallyman_test

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/tallyman-dev/tallyman"

// vocabulary packages may be imported by everyone.
var vocabulary = []string{"desired", "proxy", "nodes"}

// arrows lists what a folder may import of ours beyond the vocabulary and its
// own subfolders. A folder that is not listed inherits from its parent.
var arrows = map[string][]string{
	"cmd":              {"*"},
	"test":             {"*"},
	"examples-repo":    {},
	"desired":          {},
	"desired/manifest": {},
	"sync/gitrepo":     {},
	"sync/remote":      {},
	"sync/loop":        {"planner", "nodes/boottime"},
	"sync/prometheus":  {"planner/scale"},
	"planner":          {},
	"nodes":            {},
	"nodes/boottime":   {},
	"nodes/beat":       {},
	"nodes/wire":       {"nodes/boottime"},
	"nodes/registry":   {"nodes/beat", "nodes/boottime", "nodes/trust", "nodes/wire"},
	"nodes/trust":      {},
	"nodes/observed":   {"nodes/boottime"},
	"nodes/agent":      {"nodes/csi", "nodes/device", "nodes/runtime", "nodes/network", "nodes/volume", "nodes/probe", "nodes/keeper", "nodes/wire", "nodes/boottime"},
	"nodes/csi":        {},
	"nodes/device":     {"nodes/runtime"},
	"nodes/keeper":     {"nodes/boottime", "proxy/dns", "proxy/health"},
	"nodes/runtime":    {},
	"nodes/network":    {"nodes/beat", "proxy/netfilter"},
	"nodes/volume":     {"nodes/csi"},
	"nodes/probe":      {},
	"proxy":            {"nodes/beat"},
	"status":           {},
}

type goPackage struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	Imports    []string
}

func listPackages(t *testing.T) []goPackage {
	t.Helper()
	out, err := exec.Command("go", "list", "-tags", "e2e", "-json=ImportPath,Dir,GoFiles,Imports", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var packages []goPackage
	decoder := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p goPackage
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}

func TestImportArrows(t *testing.T) {
	for _, p := range listPackages(t) {
		from := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		if from == "" {
			continue
		}
		room, allowed := ruleFor(from)
		if room == "" {
			t.Errorf("%s: no rule says what it may import", from)
			continue
		}
		for _, imported := range p.Imports {
			to, ours := strings.CutPrefix(imported, module+"/")
			if ours && !mayImport(from, room, to, allowed) {
				t.Errorf("%s imports %s, which the design does not allow", from, to)
			}
		}
	}
}

// ruleFor finds the nearest folder above from that has a rule.
func ruleFor(from string) (room string, allowed []string) {
	for dir := from; dir != "."; dir = path.Dir(dir) {
		if allowed, ok := arrows[dir]; ok {
			return dir, allowed
		}
	}
	return "", nil
}

func mayImport(from, room, to string, allowed []string) bool {
	if slices.Contains(vocabulary, to) {
		return vocabularyOrder(from, to)
	}
	for _, prefix := range append([]string{room}, allowed...) {
		if prefix == "*" || to == prefix || strings.HasPrefix(to, prefix+"/") {
			return true
		}
	}
	return false
}

// vocabularyOrder holds desired, proxy and nodes to importing each other in
// this order only.
func vocabularyOrder(from, to string) bool {
	i := slices.Index(vocabulary, from)
	return i < 0 || slices.Index(vocabulary, to) < i
}

// TestPureRooms keeps clocks, chance, goroutines and loggers out of the
// functional core.
func TestPureRooms(t *testing.T) {
	forbidden := []string{"os", "net", "net/http", "math/rand", "math/rand/v2", "log", "log/slog", "os/exec"}
	pure := []string{"desired", "planner", "planner/workload", "planner/place", "planner/route", "planner/scale", "planner/storage", "nodes"}
	for _, p := range listPackages(t) {
		from := strings.TrimPrefix(p.ImportPath, module+"/")
		if !slices.Contains(pure, from) {
			continue
		}
		for _, imported := range p.Imports {
			if slices.Contains(forbidden, imported) {
				t.Errorf("%s imports %s: it is a room of pure functions", from, imported)
			}
		}
		for _, file := range p.GoFiles {
			checkPureFile(t, filepath.Join(p.Dir, file))
		}
	}
}

func checkPureFile(t *testing.T, name string) {
	t.Helper()
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, name, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			t.Errorf("%s: a goroutine in a pure room", set.Position(n.Pos()))
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && x.Name == "time" && slices.Contains([]string{"Now", "Since", "Until", "Sleep", "After"}, n.Sel.Name) {
				t.Errorf("%s: time.%s in a pure room", set.Position(n.Pos()), n.Sel.Name)
			}
		}
		return true
	})
}

// TestPackageComments wants every package to open with its purpose, once.
func TestPackageComments(t *testing.T) {
	for _, p := range listPackages(t) {
		if strings.HasSuffix(p.ImportPath, "/pb") || len(p.GoFiles) == 0 {
			continue
		}
		comments := 0
		for _, name := range p.GoFiles {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.ParseComments|parser.PackageClauseOnly)
			if err != nil {
				t.Fatal(err)
			}
			if file.Doc != nil {
				comments++
			}
		}
		if comments != 1 {
			t.Errorf("%s: %d package comments, want 1", p.ImportPath, comments)
		}
	}
}

// TestDependenciesAreExplained wants a line in docs/dependencies.md for every
// module that go.mod requires directly.
func TestDependenciesAreExplained(t *testing.T) {
	page, err := os.ReadFile("docs/dependencies.md")
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("go", "mod", "edit", "-json").Output()
	if err != nil {
		t.Fatal(err)
	}
	var mod struct {
		Require []struct {
			Path     string
			Indirect bool
		}
	}
	if err := json.Unmarshal(out, &mod); err != nil {
		t.Fatal(err)
	}
	for _, r := range mod.Require {
		if !r.Indirect && !strings.Contains(string(page), "| "+r.Path+" |") {
			t.Errorf("docs/dependencies.md does not say why %s is here", r.Path)
		}
	}
}

// TestPagesNameRealCommands wants every `tally COMMAND` of the pages to exist.
func TestPagesNameRealCommands(t *testing.T) {
	sources, err := filepath.Glob("cmd/tally/*.go")
	if err != nil {
		t.Fatal(err)
	}
	commands := []string{"completion"}
	use := regexp.MustCompile(`Use:\s+"([a-z-]+)`)
	for _, name := range sources {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, match := range use.FindAllStringSubmatch(string(content), -1) {
			commands = append(commands, match[1])
		}
	}
	pages, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	guides, err := filepath.Glob("docs/install/*.md")
	if err != nil {
		t.Fatal(err)
	}
	pages = append(append(pages, guides...), "README.md", "examples-repo/README.md")
	named := regexp.MustCompile("(?m)(?:`|^ {4})tally ([a-z][a-z-]*)")
	found := 0
	for _, name := range pages {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, match := range named.FindAllStringSubmatch(string(content), -1) {
			found++
			if !slices.Contains(commands, match[1]) {
				t.Errorf("%s names `tally %s`, which does not exist", name, match[1])
			}
		}
	}
	if found == 0 {
		t.Error("no page names a command: the pattern of this test is wrong")
	}
}
