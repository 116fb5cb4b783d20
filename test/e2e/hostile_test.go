//go:build e2e

package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestHostile pushes what is made to harm: each is refused or shown harmlessly,
// and afterwards an honest push works as before.
func TestHostile(t *testing.T) {
	w := newWorld(t)
	w.clone.Write("good.yaml", deployment("web", 1, ""))
	good, _ := w.clone.Apply("good")
	for _, c := range []struct {
		name  string
		write func(*world)
		says  string
	}{
		{"anchors", func(w *world) { w.clone.Write("bomb.yaml", bomb()) }, "bomb.yaml"},
		{"deep", func(w *world) { w.clone.Write("deep.yaml", strings.Repeat("[", 200_000)) }, "deep.yaml"},
		{"large", func(w *world) { w.clone.Write("large.yaml", "a: "+strings.Repeat("x", 11<<20)) }, "large.yaml"},
		{"sizes", func(w *world) {
			w.clone.Write("sizes.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: many}\nspec: {replicas: 99999999999, selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}\n")
		}, "sizes.yaml"},
		{"names", func(w *world) {
			w.clone.Write("names.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: \"a\\x1b[2Jb\\nc<script>\"}\n")
		}, "names.yaml:3"},
		{"file name", func(w *world) { w.clone.Write("\x1b[31m<b>.yaml", "nonsense: true\n") }, "<b>.yaml"},
		{"leaving link", func(w *world) {
			if err := os.Symlink("/etc/passwd", filepath.Join(w.clone.Dir, "link.yaml")); err != nil {
				w.t.Fatal(err)
			}
		}, "link.yaml"},
		{"many files", func(w *world) {
			for i := range 20_000 {
				w.clone.Write(fmt.Sprintf("many/%d/%d.yaml", i%100, i), fmt.Sprintf("kind: Junk\napiVersion: v1\nmetadata: {name: x%d}\n", i))
			}
		}, "problems"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := w.in(t)
			c.write(w)
			w.clone.Commit(c.name)
			r := w.clone.Push()
			w.unmoved(c.name, r, good)
			contains(t, "the refusal", r.Err, c.says)
			if strings.Contains(r.Err, "\x1b[31m") || strings.Contains(r.Err, "\x1b[2J") {
				t.Errorf("control characters reach the terminal: %q", r.Err)
			}
			w.clone.Git("reset", "--quiet", "--hard", good)
			w.clone.Git("clean", "--quiet", "-fd")
		})
	}
	t.Run("HTML", func(t *testing.T) { markup(w.in(t)) })
}

// bomb is YAML of a few hundred bytes that would be terabytes when expanded.
func bomb() string {
	var text strings.Builder
	text.WriteString("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n")
	for i := 1; i < 12; i++ {
		fmt.Fprintf(&text, "a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d,", i-1), 10), ","))
	}
	return text.String()
}

// markup puts HTML wherever a repository may say something.
func markup(w *world) {
	const evil = "<script>alert(1)</script>"
	w.clone.Git("config", "user.name", "Eve "+evil)
	w.clone.Write("good.yaml", strings.Replace(deployment("web", 1, "env: [{name: X, value: '"+evil+"'}]"),
		"  template:\n    metadata: {", "  template:\n    metadata: {annotations: {note: '"+evil+"'}, ", 1))
	_, output := w.clone.Apply("title " + evil + "\n\nbody " + evil)
	contains(w.t, "the push", output, "converged in")
	w.clone.Write("<img src=x onerror=alert(2)>.yaml", "kind: '"+evil+"'\napiVersion: v1\n")
	w.clone.Commit("bad " + evil)
	w.clone.TryGit("push", "origin", "main")
	for _, path := range []string{"/", "/api/v1/overview"} {
		page, err := w.page(path)
		if err != nil {
			w.t.Fatal(err)
		}
		if path == "/" && (strings.Contains(page, evil) || strings.Contains(page, "<img src=x")) {
			w.t.Errorf("%s is injected", path)
		}
		if !strings.Contains(page, "alert(1)") {
			w.t.Errorf("%s does not show the author at all", path)
		}
	}
}
