package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"

	"github.com/tallyman-dev/tallyman/nodes/agent/spec"
)

// Where the machine says how names are looked up. systemd-resolved puts itself
// into the first, on a loopback address, and the real servers into the second.
var resolverFiles = [...]string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"}

// machineResolver is the node's own resolver as a pod can use it: on the
// node's network as it is, otherwise without addresses that mean the pod
// itself. Where none is left, cluster stands in, which forwards to them.
func machineResolver(files [2]string, hostNetwork bool, cluster netip.Addr) (spec.Resolver, error) {
	own, err := readResolver(files[0])
	if err != nil || hostNetwork || !slices.ContainsFunc(own.Servers, loopback) {
		return own, err
	}
	own.Servers = slices.DeleteFunc(own.Servers, loopback)
	if len(own.Servers) > 0 {
		return own, nil
	}
	upstream, err := readResolver(files[1])
	if err != nil {
		return own, err
	}
	own.Servers = slices.DeleteFunc(upstream.Servers, loopback)
	if len(own.Servers) == 0 {
		own.Servers = []string{cluster.String()}
	}
	return own, nil
}

func loopback(server string) bool {
	addr, err := netip.ParseAddr(server)
	return err == nil && addr.IsLoopback()
}

// readResolver reads a resolv.conf; one that is not there says nothing.
func readResolver(path string) (spec.Resolver, error) {
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return spec.Resolver{}, fmt.Errorf("read the node's resolver: %w", err)
	}
	return spec.ParseResolver(text), nil
}
