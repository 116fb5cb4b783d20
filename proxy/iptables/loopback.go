package iptables

import (
	"fmt"
	"os"
	"strings"
)

const routeLocalnet = "/proc/sys/net/ipv4/conf/all/route_localnet"

// allowLoopback lets packets that were sent to 127.0.0.1 leave for an
// endpoint, and their answers come back, so that a node port answers on
// loopback. Endpoints are reached over more interfaces than the bridge, so it
// is allowed on all; what arrives from outside for 127.0.0.0/8 is dropped by
// TALLY-FIREWALL, which is in force before.
func allowLoopback() error { return setLoopback("1") }

// forbidLoopback goes back to the kernel's default.
func forbidLoopback() error { return setLoopback("0") }

func setLoopback(value string) error {
	now, err := os.ReadFile(routeLocalnet)
	if err == nil && strings.TrimSpace(string(now)) == value {
		return nil
	}
	if err := os.WriteFile(routeLocalnet, []byte(value), 0o644); err != nil {
		return fmt.Errorf("set %s to %s: %w", routeLocalnet, value, err)
	}
	return nil
}
