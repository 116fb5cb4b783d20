package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/miekg/dns"
	"github.com/spf13/cobra"
	"go.etcd.io/bbolt"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/agent"
	"github.com/tallyman-dev/tallyman/nodes/agent/cgroup"
	"github.com/tallyman-dev/tallyman/nodes/beat"
	"github.com/tallyman-dev/tallyman/nodes/csi"
	"github.com/tallyman-dev/tallyman/nodes/device"
	"github.com/tallyman-dev/tallyman/nodes/keeper"
	"github.com/tallyman-dev/tallyman/nodes/network"
	"github.com/tallyman-dev/tallyman/nodes/runtime/collect"
	"github.com/tallyman-dev/tallyman/nodes/runtime/containerd"
	"github.com/tallyman-dev/tallyman/nodes/volume"
	"github.com/tallyman-dev/tallyman/nodes/wire"
	"github.com/tallyman-dev/tallyman/proxy/iptables"
)

// node is an agent with everything it uses, wired together.
type node struct {
	instance
	o       nodeOptions
	log     *slog.Logger
	db      *bbolt.DB
	runtime *containerd.Runtime
	network *network.Network
	keeper  *keeper.Client
	proxy   *iptables.Backend
	agent   *agent.Agent
	devices *device.Manager
	drivers *csi.Drivers
	images  *collect.Collector
	// persistent keeps the data of volumes.
	persistent *volume.Persistent
	// known and addrs are the cluster's and the node's addresses that all this
	// was wired with.
	known knownNetwork
	addrs []netip.Addr
}

// newNode wires an agent, whose store is encrypted with a key of its own. It
// starts the keeper, or finds the living one; nothing else happens before run.
func newNode(ctx context.Context, i instance, o nodeOptions, key []byte, log *slog.Logger) (*node, error) {
	n := &node{instance: i, o: o, log: log.With("node", o.name)}
	known, err := readNetwork(n.networkFile(), n.log)
	if err != nil {
		return nil, err
	}
	n.known = known
	if err := errors.Join(n.openParts(ctx), n.wireAgent(key)); err != nil {
		n.close()
		return nil, err
	}
	return n, nil
}

func (n *node) agentDir() string    { return agentDir(n.dataDir) }
func (n *node) networkFile() string { return filepath.Join(n.agentDir(), "network.json") }

// openParts makes what the agent reaches the machine through.
func (n *node) openParts(ctx context.Context) (err error) {
	if err := os.MkdirAll(n.agentDir(), 0o700); err != nil {
		return err
	}
	if n.db, err = agent.OpenStore(filepath.Join(n.agentDir(), "agent.db")); err != nil {
		return err
	}
	n.runtime, err = containerd.New(containerd.Options{
		Address: n.containerd, CertsDir: n.o.certsDir, RunDir: filepath.Join(n.runDir, "containerd"), Log: n.log.With("part", "runtime"),
	})
	if err != nil {
		return err
	}
	if n.addrs, err = nodeAddrs(n.o.ip); err != nil {
		return err
	}
	if err := n.openNetwork(); err != nil {
		return err
	}
	if n.proxy, err = iptables.New(ctx, iptables.Options{Log: n.log.With("part", "proxy")}); err != nil {
		return err
	}
	n.keeper, err = keeper.Start(ctx, keeper.StartOptions{
		Command: []string{"/proc/self/exe", "keeper", "--data-dir", n.dataDir, "--run-dir", n.runDir, "--watchdog", n.o.watchdog},
		RunDir:  n.runDir, Log: n.log.With("part", "keeper"),
	})
	return err
}

// openNetwork opens the pod network for the range that the node has, if any.
func (n *node) openNetwork() error {
	if err := n.known.recall(n.db); err != nil {
		return err
	}
	var err error
	n.network, err = network.New(network.Options{
		PodCIDR: n.known.PodCIDR, ClusterCIDR: n.known.Pods, ServiceCIDR: n.known.Services,
		NodeAddr: n.addrs[0], Overlay: n.known.Overlay, KeyFile: filepath.Join(n.agentDir(), "wireguard.key"),
		RunDir: n.runDir, DB: n.db, Log: n.log.With("part", "network"),
	})
	return err
}

// wireAgent puts the parts together.
func (n *node) wireAgent(key []byte) (err error) {
	if n.db == nil || n.keeper == nil {
		return nil // openParts has said why
	}
	reserved, err := parseResources("--reserved", n.o.reserved)
	if err != nil {
		return err
	}
	capacity, err := parseResources("--capacity", n.o.capacity)
	if err != nil {
		return err
	}
	labels, err := n.o.labels()
	if err != nil {
		return err
	}
	driven, err := n.openDrivers()
	if err != nil {
		return err
	}
	volumes, err := volume.New(volume.Options{DataDir: n.agentDir(), RunDir: n.runDir, Drivers: driven, Log: n.log.With("part", "volume")})
	if err != nil {
		return err
	}
	n.persistent, err = volume.NewPersistent(volume.PersistentOptions{DataDir: n.dataDir, RunDir: n.runDir, Node: n.o.name, Drivers: driven, Log: n.log.With("part", "volume")})
	if err != nil {
		return err
	}
	groups, err := cgroup.New("/sys/fs/cgroup")
	if err != nil {
		return err
	}
	n.images, err = collect.New(collect.Options{
		Runtime: n.runtime, Disk: n.imageDisk, Needed: n.neededImages, Pressed: func() { n.agent.Pressed() },
		Log: n.log.With("part", "images"),
	})
	if err != nil {
		return err
	}
	if err := n.openDevices(); err != nil {
		return err
	}
	executable, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find our own binary: %w", err)
	}
	n.agent, err = agent.New(agent.Options{
		Name: n.o.name, Addrs: n.addrs, Labels: labels, Reserved: reserved, Capacity: capacity,
		DataDir: n.agentDir(), RunDir: n.runDir, Key: key,
		Runtime: n.runtime, Network: n.network, Keeper: n.keeper, Proxy: n.proxy, Volumes: volumes, Persistent: n.persistent, Cgroups: groups, Devices: n.devices, Drivers: n.drivers,
		Readings: agent.MachineReadings(n.agentDir(), n.runtime.Root),
		Pause:    []string{executable, "pause"}, Version: version, Forwarders: resolvers,
		DB: n.db, Log: n.log.With("part", "agent"), Now: time.Now,
	})
	return err
}

// openDrivers makes what uses storage drivers.
func (n *node) openDrivers() (*csi.Volumes, error) {
	var err error
	n.drivers, err = csi.New(csi.Options{
		Dir: n.o.kubeletDir, DataDir: n.agentDir(), Changed: func() { n.agent.DriversChanged() }, Log: n.log.With("part", "csi"),
	})
	if err != nil {
		return nil, err
	}
	return csi.NewVolumes(csi.VolumesOptions{
		Drivers: n.drivers, DataDir: n.agentDir(), Config: func(k desired.Key) *nodes.Config { return n.agent.Config(k) },
	})
}

// openDevices makes what hands out the machine's devices.
func (n *node) openDevices() error {
	static, err := device.Parse(n.o.devices)
	if err != nil {
		return usageError{fmt.Errorf("--device: %w", err)}
	}
	n.devices, err = device.New(device.Options{
		Static: static, Dir: n.o.pluginsDir, Record: filepath.Join(n.agentDir(), "devices.json"),
		Changed: func() { n.agent.DevicesChanged() }, Log: n.log.With("part", "devices"),
	})
	return err
}

// neededImages are the IDs of the images that pods are about to run on.
func (n *node) neededImages() []string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	var ids []string
	for _, ref := range n.agent.Images() {
		if image, err := n.runtime.Image(ctx, ref); err == nil {
			ids = append(ids, image.ID)
		}
	}
	return ids
}

// imageDisk measures the file system that images fill.
func (n *node) imageDisk() (collect.Disk, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	root, err := n.runtime.Root(ctx)
	if err != nil {
		return collect.Disk{}, err
	}
	return collect.StatFS(root)()
}

// errNetworkChanged ends an agent that was wired with other addresses than its
// cluster or its machine has now; another one takes its place.
var errNetworkChanged = errors.New("addresses changed")

// run converges the node until ctx ends, over sessions with the server at the
// other end of the link.
func (n *node) run(ctx context.Context, l *link) error {
	changed := make(chan knownNetwork, 1)
	client, err := wire.NewClient(wire.ClientOptions{
		Dial: l.dial, Credentials: l.credentials, Elsewhere: l.elsewhere, MaxRetry: l.maxRetry, Greeting: l.greeting,
		Node: n.o.name, Version: version, Handler: networkWatch{n.agent, n.known, changed}, Beat: beat.Wait, Log: n.log.With("part", "wire"),
	})
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return ended(ctx, n.keeper.Run(ctx)) })
	group.Go(func() error { return ended(ctx, n.network.Run(ctx)) })
	group.Go(func() error { return ended(ctx, n.proxy.Run(ctx)) })
	group.Go(func() error { return ended(ctx, n.agent.Run(ctx, client)) })
	group.Go(func() error { return ended(ctx, n.devices.Run(ctx)) })
	group.Go(func() error { return ended(ctx, n.drivers.Run(ctx)) })
	group.Go(func() error { return ended(ctx, client.Run(ctx)) })
	group.Go(func() error { return ended(ctx, n.images.Run(ctx)) })
	group.Go(func() error { return l.renew(ctx, client, n.log) })
	group.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case known := <-changed:
			n.log.Info("the cluster has other addresses for this node than it knew: starting the agent with them",
				"pods", known.PodCIDR, "before", n.known.PodCIDR, "overlay", known.Overlay)
			return errors.Join(writeNetwork(n.networkFile(), known), errNetworkChanged)
		}
	})
	if n.o.ip == "" {
		group.Go(func() error { return n.watchAddr(ctx) })
	}
	return group.Wait()
}

// ended makes the end of a part that was told to end no error.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (n *node) close() {
	if n.runtime != nil {
		n.runtime.Close()
	}
	if n.db != nil {
		n.db.Close()
	}
}

// resolvers are the machine's, from resolv.conf.
func resolvers() []netip.AddrPort {
	config, err := dns.ClientConfigFromFile("/etc/resolv.conf")
	if err != nil {
		return nil
	}
	var list []netip.AddrPort
	for _, server := range config.Servers {
		if addr, err := netip.ParseAddr(server); err == nil {
			list = append(list, netip.AddrPortFrom(addr, 53))
		}
	}
	return list
}

// parseResources reads "cpu=64,memory=256Gi".
func parseResources(flag, text string) (corev1.ResourceList, error) {
	if text == "" {
		return nil, nil
	}
	list := corev1.ResourceList{}
	for part := range strings.SplitSeq(text, ",") {
		name, value, found := strings.Cut(part, "=")
		if !found {
			return nil, usageError{fmt.Errorf("%s: %q: want name=quantity", flag, part)}
		}
		quantity, err := resource.ParseQuantity(strings.TrimSpace(value))
		if err != nil {
			return nil, usageError{fmt.Errorf("%s: %s: %w", flag, name, err)}
		}
		list[corev1.ResourceName(strings.TrimSpace(name))] = quantity
	}
	return list, nil
}

func newReset(s streams) *cobra.Command {
	var i instance
	var data bool
	cmd := &cobra.Command{
		Use:   "reset",
		Short: "Remove every container, network, rule and mount that this instance made",
		Long: "Remove every container, pod network, volume, rule and mount that the instance with this data dir made, at once\n" +
			"and without grace. The repository, the key, an agent's certificate and the data of persistent volumes stay: another\n" +
			"tally up or tally agent with this data dir takes the volumes up again. The one before must have ended.",
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return runReset(cmd.Context(), s, i, data) },
	}
	i.addFlags(cmd.Flags())
	cmd.Flags().BoolVar(&data, "delete-volumes", false, "delete the data of persistent volumes too, for good")
	return cmd
}

func runReset(ctx context.Context, s streams, i instance, data bool) error {
	if os.Geteuid() != 0 {
		return errors.New("tally reset removes containers and networks: run it as root")
	}
	if err := i.absolute(); err != nil {
		return err
	}
	log, err := i.logger()
	if err != nil {
		return err
	}
	lock, err := i.lock()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nothing was ever made
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	store, err := storeKey(i.dataDir)
	if errors.Is(err, errKeyLost) {
		store, err = make([]byte, keySize), nil // nothing that is stored is wanted any more
	}
	if err != nil {
		return err
	}
	if err := os.MkdirAll(i.runDir, 0o750); err != nil {
		return err
	}
	n, err := newNode(ctx, i, nodeOptions{name: "reset"}, store, log)
	if err != nil {
		return err
	}
	defer n.close()
	if err := errors.Join(n.agent.Reset(ctx, data), n.keeper.Stop(ctx)); err != nil {
		return err
	}
	return n.sayKept(ctx, s)
}

// sayKept names the volumes that a reset left alone.
func (n *node) sayKept(ctx context.Context, s streams) error {
	held, err := n.persistent.Held(ctx)
	if err != nil || len(held) == 0 {
		return err
	}
	fmt.Fprintf(s.err, "kept the data of %d persistent volumes in %s (remove it with: tally reset --delete-volumes)\n",
		len(held), filepath.Join(n.dataDir, "persistent"))
	return nil
}
