//go:build corpus

package stacks

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"

	"github.com/tallyman-dev/tallyman/nodes/runtime/runtimetest/image"
	"github.com/tallyman-dev/tallyman/test/corpus/stacks/plan"
	"github.com/tallyman-dev/tallyman/test/machine"
)

func TestMain(m *testing.M) { machine.Main(m) }

// programs are what every image holds, by their paths in it.
var programs = map[string]string{
	plan.Program: "github.com/tallyman-dev/tallyman/test/corpus/stacks/stub",
	plan.Server:  "github.com/tallyman-dev/tallyman/test/corpus/stacks/serve",
}

// TestStacks pushes every stack of the corpus that CORPUS names, or those whose
// names contain a word of STACK, or with PART=2/8 the second eighth of them. It puts the
// results to those of earlier runs in build/stacks.tsv.
func TestStacks(t *testing.T) {
	corpus := os.Getenv("CORPUS")
	if corpus == "" {
		t.Fatal("CORPUS must name the folder of a corpus")
	}
	all, err := Read(t.Context(), corpus, "")
	if err != nil {
		t.Fatal(err)
	}
	part, err := ParsePart(os.Getenv("PART"))
	if err != nil {
		t.Fatal(err)
	}
	var chosen []*Stack
	for _, s := range part.of(all) {
		if wanted(s.Name, strings.Fields(os.Getenv("STACK"))) {
			chosen = append(chosen, s)
		}
	}
	m := machine.New(t)
	pushImages(t, m, all, chosen)
	w := &world{Machine: m, t: t, registries: mirror(t, m)}
	var results []Result
	for _, s := range chosen {
		r := w.run(s)
		t.Logf("%s (%.1f s)", r, r.Took.Seconds())
		results = append(results, r)
		keep(t, all, r)
	}
	fmt.Println(Summary(results))
}

// wanted reports whether a name contains one of the parts, or there is none.
func wanted(name string, parts []string) bool {
	return len(parts) == 0 || slices.ContainsFunc(parts, func(p string) bool { return strings.Contains(name, p) })
}

// keep puts a result to those of earlier runs, and once there is one of every
// stack, all onto the page.
func keep(t *testing.T, all []*Stack, newest Result) {
	t.Helper()
	table := filepath.Join(machine.Root(t), "build", "stacks.tsv")
	older, err := ReadResults(table)
	if err != nil {
		t.Error(err)
	}
	results := Merge(all, older, []Result{newest})
	if err := Write(table, results); err != nil {
		t.Error(err)
	}
	if len(results) < len(all) {
		return
	}
	if err := WritePage(filepath.Join(machine.Root(t), "docs", "compatibility.md"), results); err != nil {
		t.Error(err)
	}
}

// mirror is a folder of registry settings that lead every registry to the
// machine's own.
func mirror(t *testing.T, m *machine.Machine) string {
	t.Helper()
	dir := filepath.Join(m.Dir, "certs.d")
	content := fmt.Sprintf("server = \"http://%[1]s\"\n[host.\"http://%[1]s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", machine.RegistryAddress)
	if err := os.MkdirAll(filepath.Join(dir, "_default"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "_default", "hosts.toml"), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// pushImages makes the images of the chosen stacks, as all stacks need them.
func pushImages(t *testing.T, m *machine.Machine, all, chosen []*Stack) {
	t.Helper()
	ctx := context.Background()
	binaries := map[string]string{}
	for at, program := range programs {
		built, err := image.BuildBinary(ctx, program, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		binaries[at] = built
	}
	base, err := image.Build(image.Spec{Binaries: binaries})
	if err != nil {
		t.Fatal(err)
	}
	needed := map[string]bool{}
	for _, i := range Images(chosen) {
		needed[i.Name] = true
	}
	for _, i := range Images(all) {
		if !needed[i.Name] {
			continue
		}
		text, err := json.Marshal(i.Plan)
		if err != nil {
			t.Fatal(err)
		}
		links := map[string]string{}
		for _, l := range i.Links {
			links[l] = plan.Program
		}
		built, err := image.Build(image.Spec{
			Base: base, Files: map[string]string{plan.Path: string(text)}, Links: links,
			Entrypoint: []string{plan.Program}, User: i.User,
			Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		})
		if err != nil {
			t.Fatal(err)
		}
		ref := machine.RegistryAddress + "/" + i.Name
		if err := image.Push(ctx, ref, built, "", ""); err != nil {
			t.Fatal(err)
		}
		if err := pin(ctx, m, ref, i.Pinned); err != nil {
			t.Fatal(err)
		}
	}
}

// pin has the node hold an image under references by digest.
func pin(ctx context.Context, m *machine.Machine, ref string, pinned []string) error {
	if len(pinned) == 0 {
		return nil
	}
	c, err := client.New(m.Containerd.Address, client.WithDefaultNamespace("tallyman"))
	if err != nil {
		return err
	}
	defer c.Close()
	hosts := docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchLocalhost))
	pulled, err := c.Pull(ctx, ref, client.WithPullUnpack, client.WithResolver(docker.NewResolver(docker.ResolverOptions{Hosts: hosts})))
	if err != nil {
		return err
	}
	for _, p := range pinned {
		named, err := reference.ParseDockerRef(p)
		if err != nil {
			return err
		}
		if _, err := c.ImageService().Create(ctx, images.Image{Name: named.String(), Target: pulled.Target()}); err != nil && !errdefs.IsAlreadyExists(err) {
			return err
		}
	}
	return nil
}
