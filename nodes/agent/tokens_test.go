package agent

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
)

// withToken is a pod that has a token of ten minutes in its volume.
func withToken(uid string) *nodes.Pod {
	return pod(uid, corev1.PodSpec{
		Containers: []corev1.Container{container("a")},
		Volumes: []corev1.Volume{{Name: "t", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
			Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: "vault", ExpirationSeconds: new(int64(600)), Path: "token"}}},
		}}}},
	})
}

// signs counts the tokens that the server gave out.
func (w *world) signs() {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	w.token = func(r nodes.TokenRequest) (nodes.Token, error) {
		n++
		return nodes.Token{Value: fmt.Sprintf("%s for %s no. %d", r.Pod, r.Audience, n), Issued: time.Now(), Expires: time.Now().Add(r.Expiry)}, nil
	}
}

func (w *world) away() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.token = nil
}

func (w *world) tokensOf(uid nodes.UID) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.written[uid]
}

func expectToken(t *testing.T, w *world, want string) {
	t.Helper()
	if got := w.tokensOf("u1"); !slices.Equal(got, []string{want}) {
		t.Fatalf("the volume holds %q, want %q", got, want)
	}
}

func TestTokenIsRenewedAndOutlivesTheServer(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.signs()
		a, kill := w.start()
		a.Assign(assign(withToken("u1")))
		settle(time.Second)
		expectToken(t, w, "u1 for vault no. 1")
		settle(7 * time.Minute)
		expectToken(t, w, "u1 for vault no. 1") // not yet 80 %
		settle(90 * time.Second)
		expectToken(t, w, "u1 for vault no. 2")
		// Without a server, a new agent keeps what holds, and restarts nothing.
		w.away()
		kill()
		_, kill = w.start()
		defer kill()
		settle(9 * time.Minute)
		expectToken(t, w, "u1 for vault no. 2")
		expectRunning(t, w, "u1_a_0")
		if slices.Contains(w.reasons(), "FailedMount") {
			t.Error("a token that holds was told as trouble")
		}
		settle(5 * time.Minute)
		if !slices.Contains(w.reasons(), "FailedMount") {
			t.Error("nothing was said of a token that has expired")
		}
		w.signs()
		settle(5 * time.Minute)
		expectToken(t, w, "u1 for vault no. 1")
		expectRunning(t, w, "u1_a_0")
	})
}

func TestPodWaitsForItsToken(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.mu.Lock()
		w.token = func(nodes.TokenRequest) (nodes.Token, error) {
			return nodes.Token{}, errors.New("no session with the server")
		}
		w.mu.Unlock()
		a, kill := w.start()
		defer kill()
		a.Assign(assign(withToken("u1")))
		settle(time.Second)
		expectRunning(t, w)
		if s := w.last("u1"); s.Reason != "ContainerCreating" || s.Message != `container a: service-account token for audience "vault": no session with the server` {
			t.Errorf("status %s: %s", s.Reason, s.Message)
		}
		w.signs()
		settle(3 * time.Minute)
		expectRunning(t, w, "u1_a_0")
	})
}
