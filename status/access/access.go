// Package access decides who may speak to Tallyman over HTTP.
//
// Whoever can push can become root, so nothing is open, loopback included:
// every request needs the token that lies in the run dir, readable by root and
// the group tally. It comes as a bearer token, as the password of basic
// authentication (git), or as a cookie that opening /?token=… sets.
//
// Guarantees: comparisons take constant time; a request for a host that is not
// ours, or from a page of another origin, is refused before its token is
// looked at (DNS rebinding); the cookie is not the token and opens nothing
// that is written to, nor the repository, because browsers send cookies to every
// port of a host; failed attempts are bounded.
//
// It does not do TLS, and it knows one right only: to speak. The unix socket
// goes by file permissions and needs none of this.
package access

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
)

// Options for Open.
type Options struct {
	// Path of the token file. It is made when missing.
	Path string
	// Group that may read the file; left as it is when there is no such group.
	// Empty means "tally".
	Group string
	// Hosts are names and addresses, without port, that clients may use for us
	// besides loopback: the listen address, the machine's name.
	Hosts []string
	// TLS tells that clients come by https.
	TLS bool
	// TokenOnly are path prefixes where the cookie does not count; nil means "/repo.git".
	TokenOnly []string
	Log       *slog.Logger
}

// Control guards handlers. Safe for concurrent use.
type Control struct {
	token     string
	cookie    http.Cookie
	hosts     map[string]bool
	tls       bool
	tokenOnly []string
	path      string
	failures  limiter
	log       *slog.Logger
}

// Open reads the token, making it first if need be.
func Open(o Options) (*Control, error) {
	switch {
	case o.Log == nil:
		return nil, errors.New("access control: no logger")
	case o.Path == "":
		return nil, errors.New("access control: no path for the token")
	}
	if o.Group == "" {
		o.Group = "tally"
	}
	if o.TokenOnly == nil {
		o.TokenOnly = []string{"/repo.git"}
	}
	token, err := readOrMake(o.Path, o.Group)
	if err != nil {
		return nil, err
	}
	c := &Control{
		token: token, cookie: cookieFor(token, o.TLS), hosts: map[string]bool{"localhost": true},
		tls: o.TLS, tokenOnly: o.TokenOnly, path: o.Path, log: o.Log,
	}
	for _, host := range o.Hosts {
		c.hosts[strings.ToLower(strings.TrimSuffix(host, "."))] = true
	}
	return c, nil
}

// cookieFor derives the cookie from the token: a name of its own for every
// instance, since cookies of one host are shared by all its ports, and a value
// that tells nothing about the token.
func cookieFor(token string, tls bool) http.Cookie {
	mac := hmac.New(sha256.New, []byte(token))
	mac.Write([]byte("tally page cookie"))
	sum := mac.Sum(nil)
	name := sha256.Sum256(sum)
	return http.Cookie{
		Name: "tally-" + hex.EncodeToString(name[:4]), Value: base64.RawURLEncoding.EncodeToString(sum),
		Path: "/", MaxAge: 180 * 24 * 3600, HttpOnly: true, Secure: tls, SameSite: http.SameSiteStrictMode,
	}
}

// Token is what clients must show.
func (c *Control) Token() string { return c.token }

// Link gives the address that lets a browser in, for the address that people
// open, e.g. http://127.0.0.1:7480.
func (c *Control) Link(address string) string {
	return strings.TrimSuffix(address, "/") + "/?token=" + url.QueryEscape(c.token)
}

// Wrap lets only those through to h who may pass.
func (c *Control) Wrap(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case open(r):
			h.ServeHTTP(w, r)
		case !c.knownHost(r.Host):
			refuse(w, http.StatusMisdirectedRequest, "Tallyman does not answer for this host name.\nAdd it to the names it is known by, or use one of the machine's own.\n")
		case !sameOrigin(r):
			refuse(w, http.StatusForbidden, "Tallyman answers no requests from pages of another origin.\n")
		case r.URL.Path == "/" && r.URL.Query().Has("token"):
			c.enter(w, r)
		case c.passes(r):
			h.ServeHTTP(w, r)
		default:
			c.deny(w, r, attempted(r))
		}
	})
}

// open requests are answered without a token: probes, the public keys that
// others verify service-account tokens with, and webhooks, which are signed.
// Nothing else that is served below these paths may count on access.
func open(r *http.Request) bool {
	switch r.URL.Path {
	case "/healthz", "/readyz", "/.well-known/openid-configuration", "/openid/v1/jwks":
		return true
	case "/webhook":
		return r.Method == http.MethodPost
	}
	provider, found := strings.CutPrefix(r.URL.Path, "/webhook/")
	return found && r.Method == http.MethodPost && provider != "" && !strings.ContainsAny(provider, "/.")
}

// knownHost compares the Host header with the names that we are known by.
func (c *Control) knownHost(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	if ip, err := netip.ParseAddr(host); err == nil && ip.Unmap().IsLoopback() {
		return true
	}
	return c.hosts[host]
}

// sameOrigin refuses what a browser says comes from elsewhere.
func sameOrigin(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return true
	}
	u, err := url.Parse(origin)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && strings.EqualFold(u.Host, r.Host)
}

// passes reports whether the request carries the token, or the cookie where
// that is enough.
func (c *Control) passes(r *http.Request) bool {
	if token, found := bearer(r); found {
		return equal(token, c.token)
	}
	if _, password, found := r.BasicAuth(); found {
		return equal(password, c.token)
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead || c.needsToken(r.URL.Path) {
		return false
	}
	cookie, err := r.Cookie(c.cookie.Name)
	return err == nil && equal(cookie.Value, c.cookie.Value)
}

func (c *Control) needsToken(path string) bool {
	for _, prefix := range c.tokenOnly {
		if path == prefix || strings.HasPrefix(path, strings.TrimSuffix(prefix, "/")+"/") {
			return true
		}
	}
	return false
}

// enter turns the token of an address into a cookie, so that it leaves the
// address bar and the history.
func (c *Control) enter(w http.ResponseWriter, r *http.Request) {
	if !equal(r.URL.Query().Get("token"), c.token) {
		c.deny(w, r, true)
		return
	}
	cookie := c.cookie
	cookie.Secure = c.tls || r.TLS != nil
	http.SetCookie(w, &cookie)
	w.Header().Set("Referrer-Policy", "no-referrer")
	w.Header().Set("Cache-Control", "no-store")
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

// attempted reports whether the request carried anything to get in with.
func attempted(r *http.Request) bool { return r.Header.Get("Authorization") != "" }

func bearer(r *http.Request) (string, bool) {
	scheme, token, found := strings.Cut(r.Header.Get("Authorization"), " ")
	return strings.TrimSpace(token), found && strings.EqualFold(scheme, "Bearer")
}

// equal compares hashes, so that not even the length shows.
func equal(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}

// newToken gives 32 random bytes as text.
func newToken() string {
	var b [32]byte
	// crypto/rand never fails; it ends the program instead.
	_, _ = rand.Read(b[:])
	return base64.RawURLEncoding.EncodeToString(b[:])
}
