package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/tallyman-dev/tallyman/nodes/observed/etcd"
)

// storeOptions say where the record is: in a file of the data dir, unless
// several servers share an etcd.
type storeOptions struct {
	address      string
	ca           string
	cert         string
	key          string
	user         string
	passwordFile string
	// advertise is where the other servers and agents reach this one.
	advertise string
}

func (o *storeOptions) addFlags(f *pflag.FlagSet) {
	f.StringVar(&o.address, "store", "", "etcd that several servers share, e.g. etcd://host:2379,host:2379/prefix; empty: a file in the data dir, for one server")
	f.StringVar(&o.ca, "store-ca", "", "file with the certificates to trust for --store; given, TLS is spoken")
	f.StringVar(&o.cert, "store-cert", "", "file with the client certificate for --store")
	f.StringVar(&o.key, "store-key", "", "file with that certificate's key")
	f.StringVar(&o.user, "store-user", "", "user name for --store")
	f.StringVar(&o.passwordFile, "store-password-file", "", "file with that user's password")
	f.StringVar(&o.advertise, "advertise", "", "host:port at which the other servers and the agents reach this one; default: this machine's address and the port of --listen")
}

// shared tells that several servers may run.
func (o *storeOptions) shared() bool { return o.address != "" }

// check finds what is wrong with the flags before anything starts.
func (o *storeOptions) check(s *serverOptions) error {
	for _, flag := range []struct{ name, value, needs, needed string }{
		{"store-ca", o.ca, "store", o.address},
		{"store-cert", o.cert, "store-ca", o.ca},
		{"store-key", o.key, "store-cert", o.cert},
		{"store-cert", o.cert, "store-key", o.key},
		{"store-user", o.user, "store", o.address},
		{"store-user", o.user, "store-password-file", o.passwordFile},
		{"store-password-file", o.passwordFile, "store-user", o.user},
		{"advertise", o.advertise, "store", o.address},
	} {
		if flag.value != "" && flag.needed == "" {
			return usageError{fmt.Errorf("--%s wants --%s", flag.name, flag.needs)}
		}
	}
	if !o.shared() {
		return nil
	}
	if _, _, err := etcd.ParseAddress(o.address); err != nil {
		return usageError{fmt.Errorf("--store: %w", err)}
	}
	if o.advertise != "" {
		if _, _, err := net.SplitHostPort(o.advertise); err != nil {
			return usageError{fmt.Errorf("--advertise: %w", err)}
		}
	}
	if s.embedded() {
		return usageError{errors.New("--store wants --repo: the embedded remote would be on one of the servers only, and gone with it")}
	}
	if s.listen == "" {
		return usageError{errors.New("--store wants --listen: every node may need every server")}
	}
	return nil
}

// open makes the client of the shared store.
func (o *storeOptions) open(key clusterKey, log *slog.Logger) (*etcd.Client, error) {
	endpoints, prefix, err := etcd.ParseAddress(o.address)
	if err != nil {
		return nil, usageError{fmt.Errorf("--store: %w", err)}
	}
	options := etcd.Options{Endpoints: endpoints, Prefix: prefix, User: o.user, Log: log.With("part", "store")}
	if options.TLS, err = o.tls(); err != nil {
		return nil, err
	}
	if o.passwordFile != "" {
		content, err := os.ReadFile(o.passwordFile)
		if err != nil {
			return nil, fmt.Errorf("--store-password-file: %w", err)
		}
		options.Password = strings.TrimRight(string(content), "\r\n")
	}
	if key != nil {
		fingerprint, err := key.derive("store fingerprint")
		if err != nil {
			return nil, err
		}
		options.Fingerprint = hex.EncodeToString(fingerprint[:16])
	}
	return etcd.Open(options)
}

func (o *storeOptions) tls() (*tls.Config, error) {
	if o.ca == "" {
		return nil, nil
	}
	authorities, err := os.ReadFile(o.ca)
	if err != nil {
		return nil, fmt.Errorf("--store-ca: %w", err)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: x509.NewCertPool()}
	if !config.RootCAs.AppendCertsFromPEM(authorities) {
		return nil, fmt.Errorf("--store-ca: %s holds no certificate", o.ca)
	}
	if o.cert == "" {
		return config, nil
	}
	pair, err := tls.LoadX509KeyPair(o.cert, o.key)
	if err != nil {
		return nil, fmt.Errorf("--store-cert, --store-key: %w", err)
	}
	config.Certificates = []tls.Certificate{pair}
	return config, nil
}

// openSharedKey reads the cluster key. It makes one only for a cluster that is new:
// where a store is one cluster's already, a key of our own would fit to nothing.
func (o *storeOptions) openSharedKey(ctx context.Context, dataDir string, log *slog.Logger) (clusterKey, error) {
	key, err := readKey(keyFile(dataDir), "the cluster key")
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	store, err := o.open(nil, log)
	if err != nil {
		return nil, err
	}
	defer store.Close()
	err = store.Check(ctx)
	if errors.Is(err, etcd.ErrOtherCluster) {
		return nil, fmt.Errorf("%s: there is no cluster key here, and %s belongs to a cluster already: export the key on another of its servers (tally key export) and import it here (tally key import)",
			keyFile(dataDir), o.address)
	}
	if err != nil {
		return nil, fmt.Errorf("--store: %w", err)
	}
	return openKey(dataDir)
}
