package manifest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/tallyman-dev/tallyman/desired"
)

// codes lists the codes of the problems of severity error, without repetition.
func codes(problems []desired.Problem) string {
	var out []string
	seen := map[string]bool{}
	for _, p := range problems {
		if p.Severity == desired.Error && !seen[p.Code] {
			seen[p.Code] = true
			out = append(out, p.Code)
		}
	}
	return strings.Join(out, " ")
}

func TestHostileFiles(t *testing.T) {
	laughs := "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
	for i := 1; i < 30; i++ {
		laughs += fmt.Sprintf("a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d,", i-1), 10), ","))
	}
	cases := map[string]struct{ text, code string }{
		"anchor bomb":               {configMap("bomb") + laughs, "too-large"},
		"an anchor in itself":       {"a: &a [*a, *a, *a]\n", "too-large"},
		"merge bomb":                {"a: &a {x: 1}\nb: &b {<<: [" + strings.Repeat("*a,", 200_000) + "]}\n", "too-large"},
		"flow nesting":              {configMap("deep") + "data: " + strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000), "syntax"},
		"less nesting":              {configMap("deep") + "data: " + strings.Repeat("[", 200) + strings.Repeat("]", 200), "too-large"},
		"json nesting":              {`{"apiVersion":` + strings.Repeat("[", 5_000) + strings.Repeat("]", 5_000) + "}", "too-large"},
		"NUL":                       {configMap("a") + "\x00", "syntax"},
		"escape sequence":           {configMap("a\x1b[31m"), "syntax"},
		"not UTF-8":                 {configMap("a") + "# \xff", "syntax"},
		"escaped in a string":       {configMap(`"a\e[31m\u202e"`), "invalid"},
		"HTML in a label":           {"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, labels: {x: '<script>alert(1)</script>'}}", "invalid"},
		"too large":                 {"# " + strings.Repeat("x", maxFileBytes), "unreadable"},
		"too many documents":        {strings.Repeat("---\na: b\n", maxDocuments+1), "too-large"},
		"nested Lists":              {strings.Repeat(`{"apiVersion":"v1","kind":"List","items":[`, 6) + strings.Repeat("]}", 6), "too-large"},
		"names that are no strings": {"apiVersion: [v1]\nkind: {a: b}\nmetadata: {name: 5, namespace: []}", "not-a-manifest"},
		"metadata no mapping":       {"apiVersion: v1\nkind: ConfigMap\nmetadata: [a]", "invalid"},
		"a List of nothing":         {"apiVersion: v1\nkind: List\nitems: {a: b}", "invalid"},
		"many problems":             {"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n" + unknownFields(5_000), "unknown-field more"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s, problems, err := NewLoader().Load(context.Background(), newTree(map[string]string{"a.yaml": c.text}), desired.Revision{}, LoadOptions{})
			if err != nil || s != nil {
				t.Fatalf("accepted: %v", err)
			}
			if got := codes(problems); got != c.code && !strings.HasPrefix(c.code, got+" ") {
				t.Errorf("codes %q, want %q; first problem: %.300v", got, c.code, problems[0])
			}
			for _, p := range problems {
				checkPrintable(t, p)
			}
		})
	}
}

func unknownFields(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "u%d: x\n", i)
	}
	return b.String()
}

func checkPrintable(t *testing.T, p desired.Problem) {
	t.Helper()
	for _, text := range []string{p.Message, p.Field, p.Hint} {
		if i := strings.IndexFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
			t.Errorf("%q is not printable at %d", text, i)
		}
		if len(text) > 4*maxMessage+10 {
			t.Errorf("a text of %d bytes", len(text))
		}
	}
}

// 100,000 files that are no manifests cost a walk; as many manifests are refused unread.
func TestHundredThousandFiles(t *testing.T) {
	files := map[string]string{"a.yaml": configMap("a")}
	for i := range 100_000 {
		files[fmt.Sprintf("f%d.txt", i)] = "x"
	}
	if s := mustLoad(t, NewLoader(), newTree(files), LoadOptions{}); s.Len() != 1 {
		t.Errorf("%d objects", s.Len())
	}
	many := map[string]string{}
	for i := range maxFiles + 1 {
		many[fmt.Sprintf("f%d.yaml", i)] = "x"
	}
	big := newTree(many)
	_, problems, err := NewLoader().Load(context.Background(), big, desired.Revision{}, LoadOptions{})
	if err != nil || codes(problems) != "too-large" || len(problems) != 1 {
		t.Errorf("got %v, %v", problems, err)
	}
	if n := big.opened.Load(); n != 0 {
		t.Errorf("%d files were opened", n)
	}
}

func TestManifestsTogetherAreBounded(t *testing.T) {
	files := map[string]string{}
	comment := "# " + strings.Repeat("x", maxFileBytes-2)
	for i := range maxTotalBytes/maxFileBytes + 1 {
		files[fmt.Sprintf("%d.yaml", i)] = comment
	}
	_, problems, err := NewLoader().Load(context.Background(), newTree(files), desired.Revision{}, LoadOptions{})
	if err != nil || codes(problems) != "too-large" || len(problems) != 1 {
		t.Errorf("got %v, %v", problems, err)
	}
}

func TestProblemsOfARevisionAreBounded(t *testing.T) {
	files := map[string]string{}
	for i := range 2 * maxProblems {
		files[fmt.Sprintf("%d.yaml", i)] = "a: b"
	}
	_, problems, err := NewLoader().Load(context.Background(), newTree(files), desired.Revision{}, LoadOptions{})
	if err != nil || len(problems) != maxProblems+1 || codes(problems) != "more not-a-manifest" {
		t.Errorf("%d problems, %s, %v", len(problems), codes(problems), err)
	}
}

func TestSecretsStayOutOfMessages(t *testing.T) {
	const secret = "hunter2"
	for _, text := range []string{
		"stringData: {a: [" + secret + "]}",
		"stringData: {a: {" + secret + ": b}}",
		"data: {a: " + secret + "!}",
		"data: " + secret,
		"data: {a: !!int " + secret + "}",
		"data: {a: !!float " + secret + "}",
		"data: {a: *" + secret + "}",
		"stringData:\n  a: {{ " + secret + " }}",
		"stringData:\n  a: b: " + secret,
		"type: kubernetes.io/dockerconfigjson\nstringData: {.dockerconfigjson: " + secret + "}",
		"type: kubernetes.io/tls\nstringData: {tls.crt: " + secret + "}",
	} {
		text = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\n" + text
		_, problems, err := NewLoader().Load(context.Background(), newTree(map[string]string{"a.yaml": text}), desired.Revision{}, LoadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if !desired.Rejected(problems) {
			t.Errorf("accepted: %s", text)
		}
		for _, p := range problems {
			if strings.Contains(p.String(), secret) {
				t.Errorf("%s\nsays the secret: %v", text, p)
			}
		}
	}
}

// A kustomization that refers twice to one that refers twice, and so on, ends.
func TestKustomizationBombEnds(t *testing.T) {
	files := map[string]string{"k0/x.yaml": configMap("x"), "k0/kustomization.yaml": "resources: [x.yaml]"}
	const depth = 16
	for i := 1; i <= depth; i++ {
		for _, side := range []string{"a", "b"} {
			files[fmt.Sprintf("%s%d/kustomization.yaml", side, i)] = fmt.Sprintf("namePrefix: %s\nresources: [../k%d]", side, i-1)
		}
		files[fmt.Sprintf("k%d/kustomization.yaml", i)] = fmt.Sprintf("resources: [../a%d, ../b%d]", i, i)
	}
	_, problems, err := NewLoader().Load(context.Background(), newTree(files), desired.Revision{}, LoadOptions{})
	if err != nil || codes(problems) != "too-large" {
		t.Errorf("got %s, %v", codes(problems), err)
	}
}

// many is a kustomization of n objects that kustomize compares with each other.
func many(n int) map[string]string {
	files := map[string]string{}
	list := "namePrefix: a-\nnamespace: b\nresources:\n"
	for i := range n {
		files[fmt.Sprintf("c%d.yaml", i)] = configMap(fmt.Sprintf("c%d", i))
		list += fmt.Sprintf("- c%d.yaml\n", i)
	}
	files["kustomization.yaml"] = list
	return files
}

// Kustomizations of very many objects are refused before they are built.
func TestLargeKustomizationsAreNotBuilt(t *testing.T) {
	documents := strings.Repeat(configMap("x")+"---\n", maxBuildObjects+1)
	generated := "configMapGenerator:\n" + strings.Repeat("- {name: x, literals: [a=b]}\n", maxBuildObjects+1)
	for name, files := range map[string]map[string]string{
		"files":     many(maxBuildObjects + 1),
		"documents": {"kustomization.yaml": "resources: [x.yaml]", "x.yaml": documents},
		"generated": {"kustomization.yaml": generated},
	} {
		l := NewLoader()
		l.building <- struct{}{} // nothing can be built
		l.patience = 0
		_, problems, err := l.Load(context.Background(), newTree(files), desired.Revision{}, LoadOptions{})
		if err != nil || len(problems) != 1 || problems[0].Code != "too-large" {
			t.Errorf("%s: got %d problems, %s, %v", name, len(problems), codes(problems), err)
		}
	}
}

// A build that takes too long is given up; no other starts beside one, and
// afterwards all is as before.
func TestSlowKustomizationIsGivenUp(t *testing.T) {
	l := NewLoader()
	l.patience = time.Millisecond
	_, problems, err := l.Load(context.Background(), newTree(many(500)), desired.Revision{}, LoadOptions{})
	if err != nil || len(problems) != 1 || problems[0].Code != "too-large" || problems[0].File != "kustomization.yaml" {
		t.Fatalf("got %d problems, %s, %v", len(problems), codes(problems), err)
	}
	small := newTree(many(1))
	l.building <- struct{}{} // its place, once it has ended
	if _, problems, err = l.Load(context.Background(), small, desired.Revision{}, LoadOptions{}); !errors.Is(err, errBusy) {
		t.Errorf("beside it: %v, %v", problems, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := l.run(ctx, newView(ctx, small), "."); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that has gone: %v", err)
	}
	<-l.building
	l.patience = buildPatience
	mustLoad(t, l, small, LoadOptions{})
}
