package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/status"
	"github.com/tallyman-dev/tallyman/status/access"
	"github.com/tallyman-dev/tallyman/status/statustest"
)

// start runs a server behind a token and a socket.
func start(t *testing.T) (cluster *statustest.Cluster, address, token, socket string) {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	dir := t.TempDir()
	control, err := access.Open(access.Options{Path: filepath.Join(dir, "token"), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	cluster = statustest.New(statustest.Troubled())
	server, err := status.New(status.Options{
		Cluster: cluster, Access: control, Gatherer: prometheus.NewRegistry(), Ready: func() error { return nil }, Log: log,
		Logs: func(_ context.Context, namespace, pod, container string, o status.LogOptions) (io.ReadCloser, error) {
			if pod == "none" {
				return nil, fmt.Errorf("log of %s/%s: %w", namespace, pod, fs.ErrNotExist)
			}
			return statustest.Log(fmt.Sprintf("%s/%s/%s %+v", namespace, pod, container, o)), nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	open := httptest.NewServer(server.Handler())
	t.Cleanup(open.Close)
	t.Cleanup(open.CloseClientConnections)
	socket = filepath.Join(dir, "tally.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	local := &http.Server{Handler: server.SocketHandler()}
	go func() { _ = local.Serve(listener) }()
	t.Cleanup(func() { local.Close() })
	return cluster, open.URL, control.Token(), socket
}

func TestBothWaysGiveTheSame(t *testing.T) {
	cluster, address, token, socket := start(t)
	for name, o := range map[string]Options{"socket": {Socket: socket}, "address": {URL: address, Token: token}} {
		t.Run(name, func(t *testing.T) {
			c, err := New(o)
			if err != nil {
				t.Fatal(err)
			}
			got, err := c.Overview(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			same := cmp.Comparer(func(a, b resource.Quantity) bool { return a.Cmp(b) == 0 })
			if diff := cmp.Diff(cluster.Overview(), got, same, cmpopts.EquateEmpty(), cmpopts.EquateComparable(nodes.NodeState{}.PodCIDR)); diff != "" {
				t.Errorf("overview (-server +client):\n%s", diff)
			}
		})
	}
}

func TestWatchSeesChangesUntilItIsTold(t *testing.T) {
	cluster, _, _, socket := start(t)
	c, err := New(Options{Socket: socket})
	if err != nil {
		t.Fatal(err)
	}
	enough := errors.New("enough")
	var serials []uint64
	err = c.Watch(t.Context(), func(o *nodes.Overview) error {
		serials = append(serials, o.Serial)
		if len(serials) == 2 {
			return enough
		}
		next := statustest.Healthy()
		next.Serial = 99
		cluster.Set(next)
		return nil
	})
	if !errors.Is(err, enough) || !cmp.Equal(serials, []uint64{42, 99}) {
		t.Errorf("saw %v, ended with %v", serials, err)
	}
	for deadline := time.Now().Add(5 * time.Second); cluster.Watchers() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the server still watches for a client that left")
		}
	}
}

func TestLogsCarryEveryOption(t *testing.T) {
	_, _, _, socket := start(t)
	c, _ := New(Options{Socket: socket})
	body, err := c.Logs(t.Context(), LogQuery{
		Namespace: "shop", Pod: "web", Container: "app", Follow: true, Previous: true, Timestamps: true, Tail: 7, Since: statustest.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	got, _ := io.ReadAll(body)
	want := fmt.Sprintf("shop/web/app %+v\n", status.LogOptions{Follow: true, Previous: true, Timestamps: true, Tail: 7, Since: statustest.Now})
	if string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if _, err := c.Logs(t.Context(), LogQuery{Namespace: "shop", Pod: "none"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a log that is not there: %v", err)
	}
}

func TestEvents(t *testing.T) {
	cluster, _, _, socket := start(t)
	c, _ := New(Options{Socket: socket})
	event := nodes.Event{
		Object: desired.Key{Group: "apps", Kind: "Deployment", Namespace: "shop", Name: "web"},
		Reason: "Scaled", Message: "from 3 to 5", Source: "planner", First: statustest.Now, Last: statustest.Now, Count: 1,
	}
	cluster.AddEvent(event)
	got, err := c.Events(t.Context(), event.Object)
	if diff := cmp.Diff([]nodes.Event{event}, got); err != nil || diff != "" {
		t.Errorf("error %v, diff %s", err, diff)
	}
}

func TestRefusalsSayWhatToDo(t *testing.T) {
	_, address, token, _ := start(t)
	wrong, _ := New(Options{URL: address, Token: token + "x"})
	if _, err := wrong.Overview(t.Context()); err == nil || !strings.Contains(err.Error(), "token") {
		t.Errorf("wrong token: %v", err)
	}
	nobody, _ := New(Options{Socket: filepath.Join(t.TempDir(), "no.sock")})
	if _, err := nobody.Overview(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("no server: %v", err)
	}
	for _, o := range []Options{{}, {Socket: "x", URL: "http://x"}, {URL: "ftp://x"}, {URL: "x"}} {
		if _, err := New(o); err == nil {
			t.Errorf("%+v was accepted", o)
		}
	}
}
