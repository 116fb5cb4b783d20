package cluster

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// interfaceName is what a machine calls its end of the cable.
const interfaceName = "eth0"

const (
	switchName = "switch"
	// The test's own cable: its end, and the port.
	testEnd, testPort = "test", "p-test"
)

// cables join machines and test at a switch in the test's network namespace.
type cables struct {
	bridge *netlink.Bridge
	// relays hold back the frames of these machines.
	relays map[string]*relay
}

func newCables() (*cables, error) {
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: switchName}}
	if err := netlink.LinkAdd(bridge); err != nil {
		return nil, fmt.Errorf("make a switch: %w", err)
	}
	c := &cables{bridge: bridge, relays: map[string]*relay{}}
	for file, value := range map[string]string{
		"bridge/bridge-nf-call-iptables": "1", // frames between ports pass iptables' FORWARD chain, where cables are cut
		"ipv4/conf/all/arp_ignore":       "1", // the switch and its ports do not answer for the test's address
	} {
		if err := os.WriteFile("/proc/sys/net/"+file, []byte(value), 0); err != nil {
			return c, fmt.Errorf("set up the switch: %w", err)
		}
	}
	end := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: testEnd}, PeerName: testPort}
	if err := netlink.LinkAdd(end); err != nil {
		return c, fmt.Errorf("make the test's cable: %w", err)
	}
	addr, err := netlink.ParseAddr(address(1) + "/24")
	if err != nil {
		return c, err
	}
	return c, errors.Join(netlink.LinkSetUp(bridge), c.join(testPort), netlink.AddrAdd(end, addr), netlink.LinkSetUp(end))
}

// join makes an interface a port of the switch.
func (c *cables) join(port string) error {
	link, err := netlink.LinkByName(port)
	if err != nil {
		return fmt.Errorf("find port %s: %w", port, err)
	}
	return errors.Join(netlink.LinkSetMaster(link, c.bridge), netlink.LinkSetUp(link))
}

// portOf is a machine's port at the switch, and relayPortOf the one that takes
// its place while a relay holds frames back.
func portOf(machine string) string      { return "p-" + machine }
func relayPortOf(machine string) string { return "r-" + machine }

// plug joins a machine with its network card, by the id of a process in its network.
func (c *cables) plug(machine string, card net.HardwareAddr, pid int) error {
	port := portOf(machine)
	cable := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: port},
		PeerName:  interfaceName, PeerHardwareAddr: card, PeerNamespace: netlink.NsPid(pid),
	}
	if err := netlink.LinkAdd(cable); err != nil {
		return fmt.Errorf("make the cable of %s: %w", machine, err)
	}
	return c.join(port)
}

// unplug takes a machine's cable away, with all that was done to it. It goes by
// itself, sooner or later, when the machine's network does.
func (c *cables) unplug(machine string) error {
	link, err := netlink.LinkByName(portOf(machine))
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if _, gone := errors.AsType[netlink.LinkNotFoundError](err); err != nil && !gone && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("unplug %s: %w", machine, err)
	}
	return errors.Join(c.removeRelay(machine), c.restore(machine))
}

// direction of frames on a cable, as the switch sees them.
type direction string

const (
	from direction = "--physdev-in"
	to   direction = "--physdev-out"
)

// drop loses frames on a machine's cable, each with a probability.
func (c *cables) drop(machine string, way direction, probability float64) error {
	var fate []string
	if probability < 1 {
		fate = []string{"-m", "statistic", "--mode", "random", "--probability", fmt.Sprint(probability)}
	}
	for _, port := range []string{portOf(machine), relayPortOf(machine)} {
		rule := append([]string{"-A", "FORWARD", "-m", "physdev", string(way), port}, fate...)
		if err := iptables(append(rule, "-j", "DROP")...); err != nil {
			return err
		}
	}
	return nil
}

// delay holds back every frame on a machine's cable, in both directions.
func (c *cables) delay(machine string, by time.Duration) error {
	if err := c.removeRelay(machine); err != nil {
		return err
	}
	r, err := newRelay(machine, by)
	if err != nil {
		return fmt.Errorf("hold frames of %s back: %w", machine, err)
	}
	c.relays[machine] = r
	return c.join(relayPortOf(machine))
}

func (c *cables) removeRelay(machine string) error {
	r := c.relays[machine]
	if r == nil {
		return nil
	}
	delete(c.relays, machine)
	return r.close()
}

// mend undoes whatever was done to a machine's cable.
func (c *cables) mend(machine string) error {
	if c.relays[machine] == nil {
		return c.restore(machine)
	}
	return errors.Join(c.removeRelay(machine), c.join(portOf(machine)), c.restore(machine))
}

// restore takes away the rules that lose a machine's frames.
func (c *cables) restore(machine string) error {
	rules, err := exec.Command("iptables", "-S", "FORWARD").Output()
	if err != nil {
		return fmt.Errorf("list what is cut: %w", err)
	}
	var failures []error
	for line := range strings.Lines(string(rules)) {
		fields := strings.Fields(line)
		if fields[0] == "-A" && (slices.Contains(fields, portOf(machine)) || slices.Contains(fields, relayPortOf(machine))) {
			fields[0] = "-D"
			failures = append(failures, iptables(fields...))
		}
	}
	return errors.Join(failures...)
}

func iptables(args ...string) error {
	if out, err := exec.Command("iptables", append([]string{"--wait"}, args...)...).CombinedOutput(); err != nil {
		return fmt.Errorf("iptables %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

func (c *cables) close() error {
	end, err := netlink.LinkByName(testEnd)
	if err != nil {
		return err
	}
	return errors.Join(iptables("-F", "FORWARD"), netlink.LinkDel(end), netlink.LinkDel(c.bridge))
}
