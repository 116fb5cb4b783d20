package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/tallyman-dev/tallyman/status/access"
	"github.com/tallyman-dev/tallyman/sync/gitrepo"
)

// upOptions are the flags of tally up: a server's and an agent's.
type upOptions struct {
	instance

	repo              string
	branch            string
	path              string
	interval          time.Duration
	mirrorTo          string
	credentials       gitrepo.Credentials
	mirrorCredentials gitrepo.Credentials
	webhookSecretFile string

	http     string
	httpCert string
	httpKey  string

	nodeName   string
	nodeIP     string
	reserved   string
	capacity   string
	certsDir   string
	devices    []string
	watchdog   string
	pluginsDir string
	kubeletDir string
}

func newUp(s streams) *cobra.Command {
	var o upOptions
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run server and agent on this machine",
		Long: "Run server and agent in one process on this machine: follow the repository and make the machine agree with it.\n" +
			"Without --repo the embedded remote is followed: push to http://<--http>/repo.git or to <data-dir>/repo.git.\n" +
			"Every flag also reads TALLY_<NAME> from the environment.",
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return runUp(cmd.Context(), s, o) },
	}
	f := cmd.Flags()
	o.addFlags(f)
	f.StringVar(&o.repo, "repo", "", "repository to follow, a URL or a path; empty: the embedded remote")
	f.StringVar(&o.branch, "branch", "main", "branch to follow")
	f.StringVar(&o.path, "path", ".", "folder of the repository to follow")
	f.DurationVar(&o.interval, "interval", time.Minute, "how often to look at the repository")
	f.StringVar(&o.mirrorTo, "mirror-to", "", "URL of a repository that every accepted revision is pushed to")
	f.StringVar(&o.credentials.Username, "git-username", "", "user name for https")
	f.StringVar(&o.credentials.PasswordFile, "git-token-file", "", "file with the token or password for https")
	f.StringVar(&o.credentials.CAFile, "git-ca-file", "", "file with certificates to trust for https")
	f.StringVar(&o.credentials.SSHKeyFile, "ssh-key", "", "file with the private key for ssh")
	f.StringVar(&o.credentials.SSHPassphraseFile, "ssh-passphrase-file", "", "file with that key's passphrase")
	f.StringVar(&o.credentials.KnownHostsFile, "known-hosts", "", "file with the ssh host keys to trust")
	f.StringVar(&o.mirrorCredentials.Username, "mirror-username", "", "user name for --mirror-to")
	f.StringVar(&o.mirrorCredentials.PasswordFile, "mirror-token-file", "", "file with the token or password for --mirror-to")
	f.StringVar(&o.mirrorCredentials.CAFile, "mirror-ca-file", "", "file with certificates to trust for --mirror-to")
	f.StringVar(&o.mirrorCredentials.KnownHostsFile, "mirror-known-hosts", "", "file with the ssh host keys to trust for --mirror-to")
	f.StringVar(&o.mirrorCredentials.SSHPassphraseFile, "mirror-ssh-passphrase-file", "", "file with the passphrase of --mirror-ssh-key")
	f.StringVar(&o.mirrorCredentials.SSHKeyFile, "mirror-ssh-key", "", "file with the private key for --mirror-to")
	f.StringVar(&o.webhookSecretFile, "webhook-secret-file", "", "file with the secret that webhooks are signed with; empty: no webhooks")
	f.StringVar(&o.http, "http", "127.0.0.1:7480", "address of page, webhooks and embedded remote")
	f.StringVar(&o.httpCert, "http-cert", "", "file with the TLS certificate; needed off loopback")
	f.StringVar(&o.httpKey, "http-key", "", "file with the TLS key")
	f.StringVar(&o.nodeName, "node-name", "", "name of this node; default: the host's")
	f.StringVar(&o.nodeIP, "node-ip", "", "address of this node; default: the one the default route uses")
	f.StringVar(&o.reserved, "reserved", "", "resources kept from pods, e.g. cpu=500m,memory=1Gi")
	f.StringVar(&o.capacity, "capacity", "", "resources that the node claims to have, e.g. cpu=64,memory=256Gi")
	f.StringVar(&o.certsDir, "registry-config", "/etc/containerd/certs.d", "folder with a hosts.toml for each registry")
	f.StringArrayVar(&o.devices, "device", nil, "devices that pods may request, e.g. vendor.com/name=/dev/x,/dev/y; may be repeated")
	f.StringVar(&o.watchdog, "watchdog", "", "watchdog device to hold while pods are fenced, e.g. /dev/watchdog; empty: none")
	f.StringVar(&o.pluginsDir, "device-plugins", "/var/lib/kubelet/device-plugins", "folder where device plugins register; empty: none may")
	f.StringVar(&o.kubeletDir, "kubelet-dir", "/var/lib/kubelet", "folder that storage drivers share with the node, as with a kubelet; empty: none is used")
	return cmd
}

// check finds what is wrong with the flags before anything starts.
func (o *upOptions) check() error {
	tls := o.httpCert != "" || o.httpKey != ""
	if tls && (o.httpCert == "" || o.httpKey == "") {
		return usageError{errors.New("--http-cert and --http-key go together")}
	}
	if err := access.CheckListen(o.http, tls); err != nil {
		return usageError{fmt.Errorf("--http: %w (--http-cert, --http-key)", err)}
	}
	if os.Geteuid() != 0 {
		return errors.New("tally up makes containers, network and iptables rules: run it as root")
	}
	if o.nodeName == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("--node-name: %w", err)
		}
		o.nodeName = strings.ToLower(host)
	}
	return o.absolute()
}

// runUp starts the server, then the agent, and ends both when either fails or
// ctx does. Containers, routes and the keeper stay.
func runUp(ctx context.Context, s streams, o upOptions) error {
	if err := o.check(); err != nil {
		return err
	}
	log, err := o.logger()
	if err != nil {
		return err
	}
	if err := o.makeDirs(); err != nil {
		return err
	}
	lock, err := o.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	key, err := openKey(o.dataDir)
	if err != nil {
		return err
	}

	server, err := newServer(o, key, log)
	if err != nil {
		return err
	}
	defer server.close()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return server.run(ctx) })
	group.Go(func() error { return runNode(ctx, o.nodeOptions(), key, server.agentSocket, log) })
	fmt.Fprintf(s.err, "The page is at %s\n", server.link())
	return group.Wait()
}

// runNode runs an agent, and another one when addresses changed.
func runNode(ctx context.Context, o nodeOptions, key clusterKey, socket string, log *slog.Logger) error {
	for {
		node, err := newNode(ctx, o, key, log)
		if err != nil {
			return err
		}
		err = node.run(ctx, socket)
		node.close()
		if !errors.Is(err, errNetworkChanged) {
			return err
		}
	}
}

func (o *upOptions) nodeOptions() nodeOptions {
	return nodeOptions{
		instance: o.instance, name: o.nodeName, ip: o.nodeIP,
		reserved: o.reserved, capacity: o.capacity, certsDir: o.certsDir, devices: o.devices, pluginsDir: o.pluginsDir, kubeletDir: o.kubeletDir, watchdog: o.watchdog,
	}
}

// embedded tells that the followed repository is our own remote.
func (o *upOptions) embedded() bool { return o.repo == "" }

func (o *upOptions) embeddedDir() string { return filepath.Join(o.dataDir, "repo.git") }

// address is the repository's, for gitrepo.
func (o *upOptions) address() string {
	if o.embedded() {
		return o.embeddedDir()
	}
	return o.repo
}

// shownRepo is what pages call the repository.
func (o *upOptions) shownRepo() string {
	if o.embedded() {
		return "embedded"
	}
	return gitrepo.Redact(o.repo)
}
