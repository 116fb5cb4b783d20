package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"time"

	"github.com/vishvananda/netns"
)

// Dial connects from the machine's own network.
func (m *Machine) Dial(ctx context.Context, network, address string) (connection net.Conn, err error) {
	entered := m.InNetwork(func() {
		var d net.Dialer
		connection, err = d.DialContext(ctx, network, address)
	})
	return connection, errors.Join(entered, err)
}

// InNetwork calls a function on a thread that is in the machine's network.
func (m *Machine) InNetwork(f func()) error {
	if err := InNetworkOf(m.life.Process.Pid, f); err != nil {
		return fmt.Errorf("enter the network of %s: %w", m.Name, err)
	}
	return nil
}

// InNetworkOf calls a function on a thread that is in the network of a process.
func InNetworkOf(pid int, f func()) error {
	runtime.LockOSThread()
	own, err := netns.Get()
	if err != nil {
		return err
	}
	defer own.Close()
	there, err := netns.GetFromPid(pid)
	if err != nil {
		return err
	}
	defer there.Close()
	if err := netns.Set(there); err != nil {
		return err
	}
	f()
	if err := netns.Set(own); err != nil {
		return err // the thread stays locked, and ends with the goroutine
	}
	runtime.UnlockOSThread()
	return nil
}

// Client asks over HTTP from the machine, each time on a connection of its own.
func (m *Machine) Client() *http.Client {
	return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: m.Dial, DisableKeepAlives: true}}
}

func readLog(path string) string {
	content, _ := os.ReadFile(path) // nothing yet is as good as empty
	return string(content)
}
