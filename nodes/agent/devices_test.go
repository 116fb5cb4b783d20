package agent

import (
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/device"
)

// needy is a pod that requests one device.
func needy(uid string) *nodes.Pod {
	c := container("a")
	c.Resources.Limits = corev1.ResourceList{"vendor.com/x": resource.MustParse("1")}
	return pod(uid, corev1.PodSpec{Containers: []corev1.Container{c}})
}

func TestDevicesBelongToOneContainer(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		manager, err := device.New(device.Options{
			Static: map[string][]string{"vendor.com/x": {"/dev/null"}}, Record: filepath.Join(w.dir, "devices.json"), Log: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		w.devices = manager
		a, kill := w.start()
		defer kill()
		hello, err := a.Hello(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, list := range []corev1.ResourceList{hello.Info.Capacity, hello.Info.Allocatable} {
			if q := list["vendor.com/x"]; q.Value() != 1 {
				t.Errorf("the node tells of %s devices", q.String())
			}
		}
		first := needy("u1")
		a.Assign(assign(first))
		settle(time.Second)
		a.Assign(assign(first, needy("u2"))) // no planner would
		settle(time.Second)
		expectRunning(t, w, "u1_a_0")
		if c, _ := w.runtime.Container("u1_a_0"); len(c.Devices) != 1 || c.Devices[0].HostPath != "/dev/null" {
			t.Errorf("devices %+v", c.Devices)
		}
		if s := w.last("u2"); s.Containers[0].Reason != "CreateContainerConfigError" || !strings.Contains(s.Message, "resource vendor.com/x: 1 of its devices wanted, 0 free") {
			t.Errorf("status %+v", s)
		}
		if err := w.runtime.Exit("u1_a_0", 1, false); err != nil {
			t.Fatal(err)
		}
		settle(time.Second)
		expectRunning(t, w, "u1_a_1")
		a.Assign(assign(stopped(first, time.Second), needy("u2")))
		settle(3 * time.Minute)
		expectRunning(t, w, "u2_a_0")
	})
}
