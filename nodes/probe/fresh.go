package probe

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

const (
	// maxAnswer bounds what is read of an answer, its header included, in bytes.
	maxAnswer = 1 << 20
	// maxInterim is how many answers of status 1xx may come before the one that counts.
	maxInterim = 5
)

// fresh asks over a connection of its own each time, for what is asked is
// whether a new client is served, and through no proxy of the node. All of it
// happens in the caller's goroutine: net/http's Transport takes three for each
// connection, which doubles what a probe costs.
type fresh struct{}

// RoundTrip implements http.RoundTripper.
func (fresh) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx := r.Context()
	// No connection lasts long enough to be kept alive.
	dialer := net.Dialer{KeepAlive: -1}
	conn, err := dialer.DialContext(ctx, "tcp", hostPort(r.URL))
	if err != nil {
		return nil, err
	}
	end := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(0, 1)) })
	response, err := exchange(ctx, conn, r)
	if err != nil {
		end()
		conn.Close()
		return nil, err
	}
	response.Body = answer{response.Body, conn, end}
	return response, nil
}

// exchange sends the request and reads the answer's header.
func exchange(ctx context.Context, conn net.Conn, r *http.Request) (*http.Response, error) {
	if r.URL.Scheme == "https" {
		secured := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, ServerName: r.URL.Hostname()})
		if err := secured.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		conn = secured
	}
	last := r.WithContext(ctx)
	last.Close = true
	if err := last.Write(conn); err != nil {
		return nil, err
	}
	from := bufio.NewReaderSize(io.LimitReader(conn, maxAnswer), maxMessage)
	for range maxInterim {
		response, err := http.ReadResponse(from, last)
		if err != nil || response.StatusCode >= 200 || response.StatusCode == http.StatusSwitchingProtocols {
			return response, err
		}
	}
	return nil, errors.New("too many interim answers")
}

func hostPort(u *url.URL) string {
	port := u.Port()
	switch {
	case port != "":
	case u.Scheme == "https":
		port = "443"
	default:
		port = "80"
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// answer closes the connection with the body.
type answer struct {
	io.ReadCloser
	conn net.Conn
	end  func() bool
}

// Close implements io.Closer.
func (a answer) Close() error {
	a.end()
	// What nobody read of the body is not read now.
	return a.conn.Close()
}
