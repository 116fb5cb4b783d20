//go:build e2e

package e2e_test

import (
	"fmt"
	"testing"
)

// TestFirstRequestAfterAPush: what a push says to be converged answers at once,
// by cluster address, node port and name, whenever one asks.
func TestFirstRequestAfterAPush(t *testing.T) {
	w := newWorld(t)
	w.clone.Write("asker.yaml", pod("asker", "containers: [{name: main, image: "+insideImage+"}]"))
	w.clone.Apply("who asks")
	asker := w.ip("asker")
	for i := range 20 {
		name := fmt.Sprintf("web%d", i)
		w.clone.Write("web.yaml", deployment(name, 1, "")+service(name, "type: NodePort"))
		w.clone.Apply(name)
		s := w.service(name)
		for what, at := range map[string]string{"cluster address": s.ClusterIPs[0] + ":80", "node port": fmt.Sprintf("127.0.0.1:%d", s.Ports[0].NodePort)} {
			if _, err := get(at, "/"); err != nil {
				t.Errorf("push %d: the first request by %s: %v", i, what, err)
			}
		}
		if _, err := tryAsk[any](asker, "/fetch", "url", "http://"+name+"/"); err != nil {
			t.Errorf("push %d: the first request by name: %v", i, err)
		}
	}
}
