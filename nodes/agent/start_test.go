package agent

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

// stuck is a runtime that starts no container of some pods while it hangs, as
// when their volumes lie on a server that is gone.
type stuck struct {
	runtime.Runtime
	hangs atomic.Bool
}

func (s *stuck) Start(ctx context.Context, id string) error {
	if strings.HasPrefix(id, "stuck") && s.hangs.Load() {
		<-ctx.Done()
		return ctx.Err()
	}
	return s.Runtime.Start(ctx, id)
}

func TestStartsThatHangDoNotHoldUpTheNode(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		hang := &stuck{Runtime: w.runtime}
		hang.hangs.Store(true)
		w.reached = hang
		a, kill := w.start()
		defer kill()
		var pods []*nodes.Pod
		for i := range parallel {
			pods = append(pods, pod(fmt.Sprintf("stuck%d", i), corev1.PodSpec{Containers: []corev1.Container{container("a")}}))
		}
		a.Assign(assign(pods...))
		settle(time.Second)
		a.Assign(assign(append(pods, pod("u1", corev1.PodSpec{Containers: []corev1.Container{container("a")}}))...))
		settle(answerWithin + 5*time.Second)
		expectRunning(t, w, "u1_a_0")
		if s := w.last("stuck0"); s.Containers[0].Reason != "RunContainerError" || !strings.Contains(s.Message, "did not answer within 2m0s") {
			t.Errorf("status %+v", s)
		}
		hang.hangs.Store(false)
		settle(2 * answerWithin)
		if got := w.running(); len(got) != parallel+1 || got[0] != "stuck0_a_0" {
			t.Errorf("running %v, want the same runs of all", got)
		}
	})
}
