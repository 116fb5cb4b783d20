// Package etcd keeps the record of several servers in an etcd (3.4 or newer)
// that they share, and says which of them leads.
//
// It guarantees that every write is fenced: etcd takes it only while the
// writer's key of leadership is the one that it won with, and only directly
// after the write that the writer believes to be its last, so that neither a
// server that was deposed without knowing nor a request that was held up on its
// way can change anything afterwards; that the decisions of one step are all in
// force or none, whatever their number and size; and that a leader knows by its
// own clock that its time is over before anybody else can lead.
//
// It compacts nothing and changes nothing outside of its prefix, for others may
// use the same etcd.
package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// scheme begins the address of a store.
	scheme = "etcd"
	// defaultPrefix begins the keys when the address has no path.
	defaultPrefix = "tallyman"
	// attemptTimeout bounds one request: a member that hangs must not hold up what
	// the next member would answer.
	attemptTimeout = 1500 * time.Millisecond
	// requestTimeout bounds a request with all of its attempts.
	requestTimeout = 6 * time.Second
	// retryPause is between attempts.
	retryPause = 100 * time.Millisecond
)

// Options of a Client. Endpoints and Log must be given.
type Options struct {
	// Endpoints are host:port of the members.
	Endpoints []string
	// Prefix begins every key, without slashes at its ends.
	Prefix string
	// TLS secures the connections; nil for none.
	TLS *tls.Config
	// User and Password are for an etcd that asks for them.
	User, Password string
	// Fingerprint tells clusters apart: the same on all servers of one, and another
	// on those of another.
	Fingerprint string
	Log         *slog.Logger
	// TTL is how long a leader that says nothing still leads, in whole seconds;
	// default 4 s.
	TTL time.Duration
}

// ParseAddress takes the address of a store apart: etcd://host:port,host:port/prefix.
func ParseAddress(address string) (endpoints []string, prefix string, err error) {
	const want = "want etcd://host:2379,host:2379/prefix"
	rest, found := strings.CutPrefix(address, scheme+"://")
	if !found {
		return nil, "", fmt.Errorf("%q: %s", address, want)
	}
	hosts, path, _ := strings.Cut(rest, "/")
	for host := range strings.SplitSeq(hosts, ",") {
		u, err := url.Parse("//" + host)
		if err != nil || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			return nil, "", fmt.Errorf("%q: %q is no host with a port: %s", address, host, want)
		}
		if u.Port() == "" {
			host += ":2379"
		}
		endpoints = append(endpoints, host)
	}
	prefix = strings.Trim(path, "/")
	if strings.ContainsAny(prefix, "?#") {
		return nil, "", fmt.Errorf("%q: the prefix may contain neither ? nor #: %s", address, want)
	}
	if prefix == "" {
		prefix = defaultPrefix
	}
	return endpoints, prefix, nil
}

// Client is the connection to an etcd. Safe for concurrent use.
type Client struct {
	o Options

	mu sync.Mutex // guards etcd, which is nil until the first request
	// etcd asks for a token when it is made, so it can't be made before etcd runs.
	etcd *clientv3.Client
}

// Open makes a client; it connects when it is used.
func Open(o Options) (*Client, error) {
	switch {
	case o.Log == nil:
		return nil, errors.New("etcd: no logger")
	case len(o.Endpoints) == 0 || o.Prefix == "":
		return nil, errors.New("etcd: no endpoints or no prefix")
	}
	if o.TTL <= 0 {
		o.TTL = 4 * time.Second
	}
	return &Client{o: o}, nil
}

// Close ends the connections.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.etcd == nil {
		return nil
	}
	return c.etcd.Close()
}

func (c *Client) connect() (*clientv3.Client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.etcd != nil {
		return c.etcd, nil
	}
	etcd, err := clientv3.New(clientv3.Config{
		Endpoints: c.urls(), TLS: c.o.TLS, Username: c.o.User, Password: c.o.Password,
		DialTimeout: attemptTimeout, DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 3 * time.Second,
		Logger:      zap.NewNop(), // what fails is returned
		DialOptions: []grpc.DialOption{grpc.WithChainUnaryInterceptor(refuseForgotten)},
	})
	if err != nil {
		return nil, plain(err)
	}
	c.etcd = etcd
	return etcd, nil
}

func (c *Client) urls() []string {
	out := make([]string, 0, len(c.o.Endpoints))
	for _, endpoint := range c.o.Endpoints {
		if c.o.TLS != nil {
			endpoint = "https://" + endpoint
		} else {
			endpoint = "http://" + endpoint
		}
		out = append(out, endpoint)
	}
	return out
}

// key is the whole key of what is below the prefix.
func (c *Client) key(parts ...string) string {
	return c.o.Prefix + "/" + strings.Join(parts, "/")
}

// read gets what is read only, again and again for some seconds.
func (c *Client) read(ctx context.Context, ops ...clientv3.Op) (*clientv3.TxnResponse, error) {
	return c.attempt(ctx, nil, func(ctx context.Context, etcd *clientv3.Client) (*clientv3.TxnResponse, error) {
		return etcd.Txn(ctx).Then(ops...).Commit()
	})
}

// attempt calls f until it answers, with what can't be helped by another
// attempt too, for requestTimeout at most. While over reports an error, that is
// the answer.
func (c *Client) attempt(ctx context.Context, over func() error, f func(context.Context, *clientv3.Client) (*clientv3.TxnResponse, error)) (*clientv3.TxnResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var reason error // says more than that the time is over
	for {
		if over != nil {
			if err := over(); err != nil {
				return nil, err
			}
		}
		answer, err := c.once(ctx, f)
		if err == nil || final(err) {
			return answer, plain(err)
		}
		if reason == nil || !errors.Is(err, context.DeadlineExceeded) {
			reason = err
		}
		select {
		case <-ctx.Done():
			return nil, plain(reason)
		case <-time.After(retryPause):
		}
	}
}

func (c *Client) once(ctx context.Context, f func(context.Context, *clientv3.Client) (*clientv3.TxnResponse, error)) (*clientv3.TxnResponse, error) {
	etcd, err := c.connect()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	answer, err := f(ctx, etcd)
	return answer, c.noted(etcd, err)
}

// errForgotten is a member's answer to a client that asks for another token
// while it shows one that the member has forgotten by starting again: etcd 3.4
// gives it none, and its client would go on asking until the time is over.
var errForgotten = status.Error(codes.Unauthenticated, "etcd has forgotten this client's token")

func refuseForgotten(ctx context.Context, method string, request, answer any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	err := invoke(ctx, method, request, answer, conn, options...)
	if method == pb.Auth_Authenticate_FullMethodName && rpctypes.Error(err) == rpctypes.ErrInvalidAuthToken {
		return errForgotten
	}
	return err
}

// noted returns err, after seeing to it that a client whose token is forgotten is
// replaced by one that has none yet.
func (c *Client) noted(etcd *clientv3.Client, err error) error {
	if status.Code(err) != codes.Unauthenticated {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.etcd == etcd {
		c.etcd = nil
		_ = etcd.Close() // nothing that it still had to say counts
	}
	return err
}

// final tells an answer that the next attempt would get too.
func final(err error) bool {
	for _, known := range []error{
		rpctypes.ErrNoSpace, rpctypes.ErrTooManyOps, rpctypes.ErrRequestTooLarge, rpctypes.ErrPermissionDenied,
		rpctypes.ErrAuthFailed, rpctypes.ErrUserEmpty, rpctypes.ErrLeaseNotFound, rpctypes.ErrCompacted,
	} {
		if rpctypes.Error(err) == known {
			return true
		}
	}
	return false
}

// plain says what to do about the errors that etcd's operators can mend.
func plain(err error) error {
	switch rpctypes.Error(err) {
	case nil:
		return nil
	case rpctypes.ErrNoSpace:
		return fmt.Errorf("etcd is full: compact and defragment it, then etcdctl alarm disarm: %w", err)
	case rpctypes.ErrPermissionDenied:
		return fmt.Errorf("etcd does not let the user read and write below the prefix (etcdctl role grant-permission --prefix=true … readwrite): %w", err)
	case rpctypes.ErrAuthFailed:
		return fmt.Errorf("etcd does not know the user or the password: %w", err)
	case rpctypes.ErrUserEmpty:
		return fmt.Errorf("etcd wants a user and a password: %w", err)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("etcd does not answer: %w", err)
	}
	return fmt.Errorf("etcd: %w", err)
}
