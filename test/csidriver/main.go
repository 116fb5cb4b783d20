// Command csidriver is a CSI driver for tests: volumes are directories below
// its data directory, mounted by binding them; snapshots and clones are copies.
// It registers as node-driver-registrar has drivers do, and passes the sanity
// suite of CSI's own tests. It is no part of the product.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	api "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

func main() {
	d := &driver{}
	flag.StringVar(&d.name, "name", "directory.csi.example.com", "what the driver calls itself")
	flag.StringVar(&d.node, "node", "node", "what it calls this node")
	flag.StringVar(&d.dir, "data", "", "directory of all data")
	flag.BoolVar(&d.attaches, "attach", false, "volumes must be attached before they are staged")
	flag.BoolVar(&d.shared, "shared", false, "all nodes have the directory of all data: volumes have no topology")
	socket := flag.String("socket", "", "socket of the driver")
	endpoint := flag.String("endpoint", "", "where the host has it; empty: there too")
	at := flag.String("registration", "", "socket of the registration; empty: it registers nowhere")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, d, *socket, registrant{*at, cmp.Or(*endpoint, *socket)}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// registrant is where the driver registers, and what it says of its socket.
type registrant struct{ socket, endpoint string }

// run serves until ctx ends.
func run(ctx context.Context, d *driver, socket string, r registrant) error {
	group, ctx := errgroup.WithContext(ctx)
	server := grpc.NewServer(grpc.UnaryInterceptor(d.log))
	csi.RegisterIdentityServer(server, d)
	csi.RegisterControllerServer(server, d)
	csi.RegisterNodeServer(server, d)
	group.Go(func() error { return serve(ctx, server, socket) })
	if r.socket != "" {
		registrar := grpc.NewServer()
		api.RegisterRegistrationServer(registrar, &registration{name: d.name, endpoint: r.endpoint})
		group.Go(func() error { return serve(ctx, registrar, r.socket) })
	}
	return group.Wait()
}

func serve(ctx context.Context, server *grpc.Server, socket string) error {
	if err := os.MkdirAll(filepath.Dir(socket), 0o750); err != nil {
		return err
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, server.Stop)
	defer stop()
	return server.Serve(listener)
}

// log prints every call, without what it was told: secrets are in there.
func (d *driver) log(ctx context.Context, q any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	answer, err := handle(ctx, q)
	fmt.Println(filepath.Base(info.FullMethod), err)
	return answer, err
}

// registration is the driver's part of the registration, version 1.
type registration struct {
	api.UnimplementedRegistrationServer
	name, endpoint string
}

func (r *registration) GetInfo(context.Context, *api.InfoRequest) (*api.PluginInfo, error) {
	return &api.PluginInfo{Type: api.CSIPlugin, Name: r.name, Endpoint: r.endpoint, SupportedVersions: []string{"1.0.0"}}, nil
}

func (r *registration) NotifyRegistrationStatus(_ context.Context, s *api.RegistrationStatus) (*api.RegistrationStatusResponse, error) {
	fmt.Println("registered:", s.GetPluginRegistered(), s.GetError())
	if !s.GetPluginRegistered() {
		os.Exit(1)
	}
	return &api.RegistrationStatusResponse{}, nil
}
