package access

import (
	"fmt"
	"html"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// CheckListen refuses an address off loopback without TLS. An empty host means
// all of the machine's addresses.
func CheckListen(address string, tls bool) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("listen address %q: %w", address, err)
	}
	if ip, err := netip.ParseAddr(host); tls || host == "localhost" || err == nil && ip.Unmap().IsLoopback() {
		return nil
	}
	return fmt.Errorf("listen address %s is reachable from other machines and there is no TLS: give a certificate and key, or listen on 127.0.0.1", address)
}

// deny answers with how to get in. failed tells that something was tried.
func (c *Control) deny(w http.ResponseWriter, r *http.Request, failed bool) {
	if failed {
		if !c.failures.allow(time.Now()) {
			w.Header().Set("Retry-After", "1")
			refuse(w, http.StatusTooManyRequests, "Too many failed attempts. Try again in a second.\n")
			return
		}
		c.log.Warn("request with a wrong token refused", "client", r.RemoteAddr, "path", r.URL.Path)
	}
	if c.needsToken(r.URL.Path) {
		w.Header().Set("WWW-Authenticate", `Basic realm="tally", charset="UTF-8"`)
	} else {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	if strings.Contains(r.Header.Get("Accept"), "text/html") {
		c.denyPage(w, r)
		return
	}
	refuse(w, http.StatusUnauthorized, "A token is needed. It is in "+c.path+" on the server, readable by root and the group tally.\n"+
		"Send it as \"Authorization: Bearer TOKEN\", or as the password of git (tally git-credential does).\n")
}

// denyPage tells a person how to get in.
func (c *Control) denyPage(w http.ResponseWriter, r *http.Request) {
	scheme := "http"
	if c.tls || r.TLS != nil {
		scheme = "https"
	}
	address := scheme + "://" + r.Host + "/?token=$(sudo cat " + c.path + ")"
	secure(w)
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(http.StatusUnauthorized)
	_, _ = io.WriteString(w, `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>Tallyman: a token is needed</title></head>
<body><main><h1>A token is needed</h1>
<p>Whoever sees this page sees what runs here, so it opens only with the token that <code>tally up</code> prints.</p>
<p>Print the address that lets this browser in, on the machine that runs Tallyman, as root or a member of the group <code>tally</code>:</p>
<pre>echo "`+html.EscapeString(address)+`"</pre>
<p>The browser remembers it. If you opened such an address already, <a href="/">load this page again</a>.</p>
</main></body></html>
`)
}

// refuse answers in plain text.
func refuse(w http.ResponseWriter, code int, text string) {
	secure(w)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	_, _ = io.WriteString(w, text)
}

func secure(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
}

const (
	// burst failed attempts are answered at once, then perSecond.
	burst     = 20
	perSecond = 5
)

// limiter bounds failed attempts over all clients: they are told apart too
// easily by whoever wants to. Those with the right token never meet it.
type limiter struct {
	mu sync.Mutex
	// guarded by mu
	spent float64
	last  time.Time
}

func (l *limiter) allow(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.spent = max(0, l.spent-perSecond*now.Sub(l.last).Seconds())
	l.last = now
	if l.spent+1 > burst {
		return false
	}
	l.spent++
	return true
}
