//go:build e2e

package status

import (
	"context"
	"flag"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/google/go-cmp/cmp"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/status/statustest"
)

var screens = flag.String("screens", "", "folder to write screenshots to")

// browser is Chromium with a page of ours open.
type browser struct {
	ctx     context.Context
	url     string
	cluster *statustest.Cluster

	mu         sync.Mutex
	complaints []string // guarded by mu
}

// open starts Chromium and a server that shows o. A missing browser fails the test.
func open(t *testing.T, o *nodes.Overview) *browser {
	t.Helper()
	s, cluster := newServer(t, o)
	server := httptest.NewServer(s.Handler())
	t.Cleanup(server.CloseClientConnections)
	t.Cleanup(server.Close)
	flags := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.NoSandbox, chromedp.DisableGPU, chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true), chromedp.Flag("hide-scrollbars", true))
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), flags...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	b := &browser{ctx: ctx, url: server.URL, cluster: cluster}
	b.do(t) // starts the browser
	b.ctx, cancel = context.WithTimeout(ctx, 2*time.Minute)
	t.Cleanup(cancel)
	messages := chromedp.Console(ctx)
	go func() {
		for m, err := range messages {
			if err != nil {
				return
			}
			b.mu.Lock()
			b.complaints = append(b.complaints, fmt.Sprintf("%s: %s (%s:%d)", m.Type, m.Text, m.URL, m.Line))
			b.mu.Unlock()
		}
	}()
	return b
}

func (b *browser) do(t *testing.T, actions ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	if err := chromedp.Do(b.ctx, actions...); err != nil {
		t.Fatal(err)
	}
}

func (b *browser) eval(t *testing.T, script string) string {
	t.Helper()
	out, err := chromedp.Run(b.ctx, chromedp.Evaluate[any](script))
	if err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	return fmt.Sprint(out)
}

// until waits for a script to give want.
func (b *browser) until(t *testing.T, script, want string) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		got := b.eval(t, script)
		if got == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s gives %q, want %q", script, got, want)
		}
	}
}

func (b *browser) quiet(t *testing.T) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.complaints) > 0 {
		t.Errorf("the browser complains:\n%s", strings.Join(b.complaints, "\n"))
	}
}

// screen sets the window and the colours that the reader prefers.
func (b *browser) screen(t *testing.T, width, height int64, scheme string) {
	t.Helper()
	size := emulation.SetDeviceMetricsOverrideParams{Width: width, Height: height, DeviceScaleFactor: 1, Mobile: width < 600}
	if _, err := chromedp.Call(b.ctx, emulation.SetDeviceMetricsOverride, size); err != nil {
		t.Fatal(err)
	}
	media := emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}}
	if _, err := chromedp.Call(b.ctx, emulation.SetEmulatedMedia, media); err != nil {
		t.Fatal(err)
	}
}

func (b *browser) shot(t *testing.T, name string) {
	t.Helper()
	if *screens == "" {
		return
	}
	png, err := chromedp.Run(b.ctx, chromedp.FullScreenshot(100))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(*screens, name+".png"), png, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestBrowserEveryPageOnEveryScreen(t *testing.T) {
	b := open(t, statustest.Troubled())
	everyScreen(t, b, "", paths)
}

func TestBrowserShowsStorageJobsAndAutoscalers(t *testing.T) {
	b := open(t, statustest.Stateful())
	everyScreen(t, b, "stateful-", statefulPaths)
}

func everyScreen(t *testing.T, b *browser, prefix string, paths []string) {
	t.Helper()
	for _, size := range []struct {
		name          string
		width, height int64
	}{{"desktop", 1440, 900}, {"tablet", 820, 1100}, {"phone", 360, 740}} {
		for _, scheme := range []string{"light", "dark"} {
			b.screen(t, size.width, size.height, scheme)
			for i, path := range paths {
				b.do(t, chromedp.Navigate(b.url+path), chromedp.WaitReady(chromedp.CSS("footer")))
				if over := b.eval(t, `String(document.documentElement.scrollWidth - innerWidth)`); over != "0" {
					t.Errorf("%s on a %s scrolls sideways by %s", path, size.name, over)
				}
				b.shot(t, fmt.Sprintf("%s%02d-%s-%s", prefix, i, size.name, scheme))
			}
			if got, dark := b.eval(t, `getComputedStyle(document.documentElement).backgroundColor`), scheme == "dark"; dark != strings.HasPrefix(got, "rgb(1") {
				t.Errorf("background in %s: %s", scheme, got)
			}
		}
	}
	b.quiet(t)
}

func TestBrowserKeepsItselfUpToDate(t *testing.T) {
	b := open(t, statustest.Healthy())
	b.do(t, chromedp.Navigate(b.url), chromedp.WaitReady(chromedp.CSS("footer")))
	b.until(t, `document.getElementById("connection").textContent`, "live")
	b.eval(t, `document.querySelector("details.workload:nth-of-type(1) > summary").click(); document.querySelector("details.workload > summary").focus(); window.same = document.activeElement; 0`)
	b.cluster.Set(statustest.Troubled())
	b.until(t, `document.title`, "✕ 1 object degraded · Tallyman")
	b.until(t, `document.getElementById("h-rejected") && document.getElementById("h-rejected").textContent.trim()`, "✕ Revision 8d4f2e0 was rejected")
	b.until(t, `document.getElementById("announce").textContent`, "1 object degraded: 13 of 15 objects healthy, 1 degraded, 1 progressing")
	b.until(t, `String(window.same === document.activeElement && same.parentNode.open)`, "true")
	b.until(t, `document.getElementById("icon").getAttribute("href").split("?")[0]`, "/static/degraded.svg")
	next := statustest.Healthy()
	next.Serial = 43
	b.cluster.Set(next)
	b.until(t, `document.title`, "✓ all healthy · Tallyman")
	b.until(t, `document.getElementById("alerts").textContent.trim()`, "")
	shape := `JSON.stringify([...document.querySelectorAll("main .fragment")].map(f => f.id + " " + f.textContent.replace(/\s+/g, " ").trim()))`
	lived := b.eval(t, shape)
	b.do(t, chromedp.Navigate(b.url), chromedp.WaitReady(chromedp.CSS("footer")))
	if diff := cmp.Diff(b.eval(t, shape), lived); diff != "" {
		t.Errorf("a page that was kept up to date differs from a fresh one (-fresh +kept):\n%s", diff)
	}
	b.quiet(t)
}

func TestBrowserFollowsALog(t *testing.T) {
	b := open(t, statustest.Healthy())
	b.do(t, chromedp.Navigate(b.url+"/logs/shop/web-6f7c9b8d4-a0000?container=app"), chromedp.WaitReady(chromedp.CSS("footer")))
	b.until(t, `document.getElementById("log-state").textContent`, "The container has ended.")
	b.until(t, `String(document.getElementById("log-lines").textContent.includes("follow=true"))`, "true")
	b.until(t, `String(document.querySelectorAll("#log-lines script").length)`, "0")
	b.quiet(t)
}

func TestBrowserReadsWithoutScript(t *testing.T) {
	b := open(t, statustest.Troubled())
	if _, err := chromedp.Call(b.ctx, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true}); err != nil {
		t.Fatal(err)
	}
	b.do(t, chromedp.Navigate(b.url), chromedp.WaitReady(chromedp.CSS("footer")))
	text, err := chromedp.Run(b.ctx, chromedp.Text(chromedp.CSS("body")))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Scale web to five replicas", "was rejected", "did you mean image?", "ImagePullBackOff", "10.96.3.44"} {
		if !strings.Contains(text, want) {
			t.Errorf("without script the page lacks %q", want)
		}
	}
	b.quiet(t)
}

func TestBrowserKeyboard(t *testing.T) {
	b := open(t, statustest.Healthy())
	b.do(t, chromedp.Navigate(b.url), chromedp.WaitReady(chromedp.CSS("footer")))
	var got []string
	for range 9 {
		b.do(t, chromedp.KeyEvent("\t"))
		got = append(got, b.eval(t, `document.activeElement.tagName + " " + (document.activeElement.querySelector("strong") || document.activeElement).textContent.trim()`))
	}
	want := []string{"A Skip to content", "A Tallyman", "A Overview", "A Workloads", "A Services", "A Storage", "A Objects", "A History", "A Scale web to five replicas"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("order of the tab key (-want +got):\n%s", diff)
	}
	b.eval(t, `document.querySelector("details.workload > summary").focus(); 0`)
	b.do(t, chromedp.KeyEvent("\r"))
	b.until(t, `String(document.querySelector("details.workload").open)`, "true")
	if outline := b.eval(t, `getComputedStyle(document.activeElement).outlineStyle`); outline != "solid" {
		t.Errorf("the focus shows as %q", outline)
	}
}

func TestBrowserAccessibilityTree(t *testing.T) {
	b := open(t, statustest.Troubled())
	b.do(t, chromedp.Navigate(b.url), chromedp.WaitReady(chromedp.CSS("footer")))
	tree, err := chromedp.Call(b.ctx, accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{})
	if err != nil {
		t.Fatal(err)
	}
	roles := map[string]int{}
	for _, n := range tree.Nodes {
		if n.Ignored || n.Role == nil {
			continue
		}
		role, name := text(n.Role), text(n.Name)
		roles[role]++
		if name == "" && (role == "link" || role == "button" || role == "heading" || role == "table" || role == "region" || role == "navigation") {
			t.Errorf("a %s has no name", role)
		}
	}
	for role, want := range map[string]int{"main": 1, "banner": 1, "contentinfo": 1, "navigation": 1, "status": 1} {
		if roles[role] != want {
			t.Errorf("%d of %s, want %d", roles[role], role, want)
		}
	}
	if roles["heading"] < 8 || roles["table"] < 3 || roles["button"] > 0 {
		t.Errorf("roles %v", roles)
	}
}

func text(v *accessibility.Value) string {
	if v == nil {
		return ""
	}
	return strings.Trim(string(v.Value), `"`)
}
