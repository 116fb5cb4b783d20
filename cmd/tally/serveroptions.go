package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/tallyman-dev/tallyman/status/access"
	"github.com/tallyman-dev/tallyman/sync/gitrepo"
)

// serverOptions are what a server is told by flags.
type serverOptions struct {
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
	// listen is where agents come in; empty for none.
	listen string
	store  storeOptions
}

// addFlags has the address that agents come in at by default as an argument.
func (o *serverOptions) addFlags(f *pflag.FlagSet, listen string) {
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
	f.StringVar(&o.listen, "listen", listen, "address that agents of other machines come in at, e.g. :7400; empty: none may")
}

// check finds what is wrong with the flags before anything starts.
func (o *serverOptions) check() error {
	tls := o.httpCert != "" || o.httpKey != ""
	if tls && (o.httpCert == "" || o.httpKey == "") {
		return usageError{errors.New("--http-cert and --http-key go together")}
	}
	if err := access.CheckListen(o.http, tls); err != nil {
		return usageError{fmt.Errorf("--http: %w (--http-cert, --http-key)", err)}
	}
	if err := o.store.check(o); err != nil {
		return err
	}
	if o.listen == "" {
		return nil
	}
	if _, _, err := net.SplitHostPort(o.listen); err != nil {
		return usageError{fmt.Errorf("--listen: %w", err)}
	}
	return nil
}

// embedded tells that the followed repository is our own remote.
func (o *serverOptions) embedded() bool { return o.repo == "" }

// shownRepo is what pages call the repository.
func (o *serverOptions) shownRepo() string {
	if o.embedded() {
		return "embedded"
	}
	return gitrepo.Redact(o.repo)
}

func (i *instance) embeddedDir() string { return filepath.Join(i.dataDir, "repo.git") }

// address is the repository's, for gitrepo.
func (s *server) address() string {
	if s.o.embedded() {
		return s.embeddedDir()
	}
	return s.o.repo
}

func newServerCommand(s streams) *cobra.Command {
	var i instance
	var o serverOptions
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Run the control plane of a cluster, without a node",
		Long: "Run the control plane: follow the repository and tell the agents of other machines what to run.\n" +
			"They join with tally agent and a token from tally token create. Losing the data dir loses nothing but the\n" +
			"cluster key, which tally key export keeps. With --store several servers share an etcd: one leads, the others take over\n" +
			"within seconds. Every flag also reads TALLY_<NAME> from the environment.",
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return runServer(cmd.Context(), s, i, o) },
	}
	i.addFlags(cmd.Flags())
	o.addFlags(cmd.Flags(), ":7400")
	o.store.addFlags(cmd.Flags())
	return cmd
}

func runServer(ctx context.Context, s streams, i instance, o serverOptions) error {
	if err := o.check(); err != nil {
		return err
	}
	if err := i.absolute(); err != nil {
		return err
	}
	if o.store.shared() {
		return runSeveral(ctx, s, i, o)
	}
	return i.hold(ctx, func(log *slog.Logger) error {
		key, err := openKey(i.dataDir)
		if err != nil {
			return err
		}
		server, err := newServer(i, o, "", key, log)
		if err != nil {
			return err
		}
		defer server.close()
		fmt.Fprintf(s.err, "The page is at %s\n", server.link())
		return server.run(ctx)
	})
}
