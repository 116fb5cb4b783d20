package containerd

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/client"
	coreimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

// parallelLayers is how many layers of one image are fetched at a time.
const parallelLayers = 4

// Pull implements runtime.Runtime. Content is checked against its digest by
// containerd as it is written. Credentials are part of what makes two pulls
// the same: nobody gets an image by another's login.
func (r *Runtime) Pull(ctx context.Context, ref string, o runtime.PullOptions) (runtime.Image, error) {
	named, err := normalize(ref)
	if err != nil {
		return runtime.Image{}, &PullError{Ref: ref, Reason: "it is not a valid image reference", Err: err}
	}
	img, err := r.pulls.share(ctx, pullKey(named, o.Auths), o.Progress, func(ctx context.Context, meter *meter) (*image, error) {
		return withLogins(o.Auths, named, func(auths []runtime.Auth) (*image, error) { return r.pull(ctx, named, auths, meter) })
	})
	if err != nil {
		return runtime.Image{}, explainPull(named, err)
	}
	return img.Image, nil
}

// withLogins pulls with the first login that fits the image, and with the next
// as long as the registry refuses: a Secret may still hold an old one.
func withLogins(auths []runtime.Auth, named reference.Named, pull func([]runtime.Auth) (*image, error)) (*image, error) {
	for {
		img, err := pull(auths)
		used := login(auths, reference.Domain(named), named)
		if err == nil || used < 0 || !refused(native(err)) {
			return img, err
		}
		rest := slices.Delete(slices.Clone(auths), used, used+1)
		if login(rest, reference.Domain(named), named) < 0 {
			return img, err
		}
		auths = rest
	}
}

func (r *Runtime) pull(ctx context.Context, named reference.Named, auths []runtime.Auth, m *meter) (*image, error) {
	pulled, err := r.client.Pull(
		quiet(ctx), named.String(),
		client.WithPullUnpack,
		client.WithPullSnapshotter(r.snapshotter),
		client.WithMaxConcurrentDownloads(parallelLayers),
		client.WithResolver(metered{r.resolver(ctx, named, auths), m}),
		client.WithImageHandlerWrapper(m.handler),
	)
	if err != nil {
		return nil, err
	}
	img, err := r.images.load(ctx, pulled.Metadata())
	if errors.Is(err, errForeign) {
		// Nobody can use it, so nobody would ever remove it.
		err = errors.Join(err, r.client.ImageService().Delete(ctx, pulled.Name()))
	}
	return img, err
}

func (r *Runtime) resolver(ctx context.Context, named reference.Named, auths []runtime.Auth) remotes.Resolver {
	return docker.NewResolver(docker.ResolverOptions{
		Hosts: config.ConfigureHosts(quiet(ctx), config.HostOptions{
			HostDir: config.HostDirFromRoot(r.certsDir),
			Credentials: func(host string) (string, string, error) {
				user, secret := credentials(auths, host, named)
				return user, secret, nil
			},
		}),
	})
}

// credentials returns the first login that fits a host that an image is fetched from.
func credentials(auths []runtime.Auth, host string, named reference.Named) (user, secret string) {
	i := login(auths, host, named)
	switch {
	case i < 0:
		return "", ""
	case auths[i].IdentityToken != "":
		return "", auths[i].IdentityToken // containerd takes this for a token to exchange
	}
	return auths[i].Username, auths[i].Password
}

// login finds the first login that fits; -1 when none does.
func login(auths []runtime.Auth, host string, named reference.Named) int {
	return slices.IndexFunc(auths, func(a runtime.Auth) bool {
		registry, prefix, _ := strings.Cut(bare(a.Registry), "/")
		return sameHost(canonicalHost(registry), canonicalHost(host)) && (prefix == "" || covers(prefix, reference.Path(named)))
	})
}

// sameHost compares hosts part by part; the pattern's parts may have wildcards,
// as in *.example.org, its port none.
func sameHost(pattern, host string) bool {
	pattern, wanted, _ := strings.Cut(pattern, ":")
	host, port, _ := strings.Cut(host, ":")
	if wanted != port {
		return false
	}
	return slices.EqualFunc(strings.Split(pattern, "."), strings.Split(host, "."), func(pattern, part string) bool {
		fits, err := path.Match(pattern, part)
		return err == nil && fits
	})
}

// bare takes off what docker's configuration files write around a registry.
func bare(registry string) string {
	registry = strings.TrimPrefix(strings.TrimPrefix(registry, "https://"), "http://")
	registry = strings.TrimSuffix(registry, "/")
	return strings.TrimSuffix(strings.TrimSuffix(registry, "/v1"), "/v2")
}

func covers(prefix, path string) bool { return path == prefix || strings.HasPrefix(path, prefix+"/") }

func canonicalHost(host string) string {
	switch host {
	case "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com":
		return "docker.io"
	}
	return host
}

func pullKey(named reference.Named, auths []runtime.Auth) string {
	encoded, err := json.Marshal(auths)
	if err != nil {
		return named.String()
	}
	sum := sha256.Sum256(encoded)
	return named.String() + " " + string(sum[:])
}

// pulls lets callers that want the same image at the same time share the work.
type pulls struct {
	// patience is how long a registry may keep silent; 5 minutes when zero.
	patience time.Duration

	mu      sync.Mutex // guards running
	running map[string]*sharedPull
}

type sharedPull struct {
	meter   meter
	done    chan struct{}
	cancel  context.CancelCauseFunc
	callers int // guarded by pulls.mu
	image   *image
	err     error
}

// share runs do once for all callers of a key; it is cancelled when the last of them has left.
func (p *pulls) share(ctx context.Context, key string, progress func(done, total int64), do func(context.Context, *meter) (*image, error)) (*image, error) {
	p.mu.Lock()
	shared := p.running[key]
	if shared == nil {
		shared = p.start(ctx, key, do)
	}
	shared.callers++
	p.mu.Unlock()
	defer p.leave(key, shared)
	if progress != nil {
		defer shared.meter.watch(progress)()
	}
	select {
	case <-shared.done:
		return shared.image, shared.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// start begins the work; p.mu is held.
func (p *pulls) start(ctx context.Context, key string, do func(context.Context, *meter) (*image, error)) *sharedPull {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	shared := &sharedPull{done: make(chan struct{}), cancel: cancel}
	if p.running == nil {
		p.running = map[string]*sharedPull{}
	}
	p.running[key] = shared
	shared.meter.moved = time.Now()
	go shared.watch(ctx, cmp.Or(p.patience, defaultPatience))
	go func() {
		defer close(shared.done)
		defer cancel(nil)
		shared.image, shared.err = do(ctx, &shared.meter)
		if silent, ok := errors.AsType[*silentError](context.Cause(ctx)); ok && shared.err != nil {
			shared.err = silent
		}
		p.forget(key, shared)
	}()
	return shared
}

const defaultPatience = 5 * time.Minute

// silentError ends a pull in which the registry owed an answer and sent nothing.
type silentError struct{ since time.Duration }

func (e *silentError) Error() string { return fmt.Sprintf("nothing came for %s", e.since) }

// watch ends the pull when nothing has moved for as long as patience says.
// Unpacking may take any time.
func (s *sharedPull) watch(ctx context.Context, patience time.Duration) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		silent := s.meter.silent(time.Now())
		if silent >= patience {
			s.cancel(&silentError{patience})
			return
		}
		timer.Reset(patience - silent)
	}
}

func (p *pulls) leave(key string, shared *sharedPull) {
	p.mu.Lock()
	shared.callers--
	last := shared.callers == 0
	p.mu.Unlock()
	if last {
		p.forget(key, shared)
		shared.cancel(nil)
	}
}

func (p *pulls) forget(key string, shared *sharedPull) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running[key] == shared {
		delete(p.running, key)
	}
}

// meter counts the bytes of one pull.
type meter struct {
	mu       sync.Mutex // guards what follows
	done     int64
	total    int64
	seen     map[string]bool
	watchers map[int]func(done, total int64)
	next     int
	// owed counts what the registry has yet to answer or to send to its end,
	// moved is when it last began or went on.
	owed  int
	moved time.Time
}

// ask notes that something is owed by the registry, until answered is called,
// which may be more than once.
func (m *meter) ask() (answered func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.owed++
	m.moved = time.Now()
	return sync.OnceFunc(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.owed--
		m.moved = time.Now()
	})
}

// silent is how long the registry has owed something without sending anything.
func (m *meter) silent(now time.Time) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.owed == 0 {
		return 0
	}
	return now.Sub(m.moved)
}

// move notes that bytes came.
func (m *meter) move() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.moved = time.Now()
}

// watch calls f with every change until the returned function is called.
func (m *meter) watch(f func(done, total int64)) func() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.watchers == nil {
		m.watchers = map[int]func(done, total int64){}
	}
	key := m.next
	m.next++
	m.watchers[key] = f
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.watchers, key)
	}
}

func (m *meter) add(done, total int64) {
	m.mu.Lock()
	m.done += done
	m.total += total
	d, t := m.done, m.total
	var watchers []func(done, total int64)
	for _, f := range m.watchers {
		watchers = append(watchers, f)
	}
	m.mu.Unlock()
	for _, f := range watchers {
		f(d, t)
	}
}

// first tells whether a descriptor is new to the meter.
func (m *meter) first(d ocispec.Descriptor) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.seen == nil {
		m.seen = map[string]bool{}
	}
	if m.seen[d.Digest.String()] {
		return false
	}
	m.seen[d.Digest.String()] = true
	return true
}

// handler counts the parts of an image as soon as its manifest names them.
func (m *meter) handler(next coreimages.Handler) coreimages.Handler {
	return coreimages.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		children, err := next.Handle(ctx, d)
		if coreimages.IsManifestType(d.MediaType) {
			for _, child := range children {
				if m.first(child) {
					m.add(0, child.Size)
				}
			}
		}
		return children, err
	})
}

// metered is a resolver whose downloads are counted.
type metered struct {
	remotes.Resolver
	meter *meter
}

func (r metered) Resolve(ctx context.Context, ref string) (string, ocispec.Descriptor, error) {
	defer r.meter.ask()()
	return r.Resolver.Resolve(ctx, ref)
}

func (r metered) Fetcher(ctx context.Context, ref string) (remotes.Fetcher, error) {
	inner, err := r.Resolver.Fetcher(ctx, ref)
	if err != nil {
		return nil, err
	}
	return remotes.FetcherFunc(func(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
		answered := r.meter.ask()
		body, err := inner.Fetch(ctx, d)
		if err != nil {
			answered()
			return nil, err
		}
		counts := !coreimages.IsManifestType(d.MediaType) && !coreimages.IsIndexType(d.MediaType)
		return &meteredBody{ReadCloser: body, meter: r.meter, counts: counts, answered: answered}, nil
	}), nil
}

// meteredBody keeps the Seek of what it wraps: interrupted downloads go on where they stopped.
type meteredBody struct {
	io.ReadCloser
	meter *meter
	// counts tells that its bytes are part of the progress that is shown.
	counts   bool
	answered func()
}

func (b *meteredBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.meter.move()
	}
	if b.counts {
		b.meter.add(int64(n), 0)
	}
	return n, err
}

func (b *meteredBody) Close() error {
	defer b.answered()
	return b.ReadCloser.Close()
}

func (b *meteredBody) Seek(offset int64, whence int) (int64, error) {
	seeker, ok := b.ReadCloser.(io.Seeker)
	if !ok {
		return 0, errNoSeek
	}
	return seeker.Seek(offset, whence)
}
