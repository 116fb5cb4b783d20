// Package client asks a running server how things are, for the commands of
// `tally`: by the unix socket in the run dir, or by its address with a token.
//
// It only reads. Errors name the address and, where there is one, the next step.
package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// ErrNotRunning is returned when no server answers at the socket or address.
var ErrNotRunning = errors.New("no server answers")

// Options for New: either Socket or URL.
type Options struct {
	// Socket is the path of the server's unix socket.
	Socket string
	// URL of a server, e.g. https://tally.example:7480, and Token to get in.
	URL   string
	Token string
	// HTTP is used instead of a client of our own when set, for its
	// certificates; not with Socket.
	HTTP *http.Client
}

// Client asks one server. Safe for concurrent use.
type Client struct {
	http  *http.Client
	base  string
	token string
	where string
}

// LogQuery says which log to read. Container may be empty when the pod has only one.
type LogQuery struct {
	Namespace, Pod, Container string
	// Follow, Previous and Timestamps as in kubectl logs.
	Follow, Previous, Timestamps bool
	// Tail is the number of lines from the end; negative means all.
	Tail int
	// Since leaves out older lines when not zero.
	Since time.Time
}

// New makes a client; nothing is asked yet.
func New(o Options) (*Client, error) {
	if (o.Socket == "") == (o.URL == "") {
		return nil, errors.New("status client: either a socket or an address is needed")
	}
	if o.Socket != "" {
		transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", o.Socket)
		}}
		return &Client{http: &http.Client{Transport: transport}, base: "http://localhost", where: o.Socket}, nil
	}
	u, err := url.Parse(o.URL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("status client: %q is no http or https address", o.URL)
	}
	client := o.HTTP
	if client == nil {
		client = &http.Client{}
	}
	return &Client{http: client, base: strings.TrimSuffix(o.URL, "/"), token: o.Token, where: u.Host}, nil
}

// Overview asks for the newest overview.
func (c *Client) Overview(ctx context.Context) (*nodes.Overview, error) {
	var o nodes.Overview
	return &o, c.getJSON(ctx, "/api/v1/overview", nil, &o)
}

// Events asks for the events of one object.
func (c *Client) Events(ctx context.Context, key desired.Key) ([]nodes.Event, error) {
	var events []nodes.Event
	q := url.Values{"group": {key.Group}, "kind": {key.Kind}, "namespace": {key.Namespace}, "name": {key.Name}}
	return events, c.getJSON(ctx, "/api/v1/events", q, &events)
}

// Watch calls see with the overview as it is and every time that it changes,
// until see returns an error, which Watch returns, or ctx or the connection
// ends. Overviews that came faster than see returned are left out.
func (c *Client) Watch(ctx context.Context, see func(*nodes.Overview) error) error {
	body, err := c.get(ctx, "/api/v1/watch", nil)
	if err != nil {
		return err
	}
	defer body.Close()
	lines := bufio.NewReader(body)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("watch %s: the connection ended: %w", c.where, err)
		}
		data, found := strings.CutPrefix(string(line), "data: ")
		if !found {
			continue
		}
		var o nodes.Overview
		if err := json.Unmarshal([]byte(data), &o); err != nil {
			return fmt.Errorf("watch %s: read overview: %w", c.where, err)
		}
		if err := see(&o); err != nil {
			return err
		}
	}
}

// Logs opens a container's log; the reader must be closed. A log that is not
// there gives an error that wraps fs.ErrNotExist.
func (c *Client) Logs(ctx context.Context, l LogQuery) (io.ReadCloser, error) {
	q := url.Values{"namespace": {l.Namespace}, "pod": {l.Pod}, "container": {l.Container}, "tail": {strconv.Itoa(l.Tail)}}
	for name, set := range map[string]bool{"follow": l.Follow, "previous": l.Previous, "timestamps": l.Timestamps} {
		if set {
			q.Set(name, "true")
		}
	}
	if !l.Since.IsZero() {
		q.Set("since", l.Since.UTC().Format(time.RFC3339Nano))
	}
	return c.get(ctx, "/api/v1/logs", q)
}

func (c *Client) getJSON(ctx context.Context, path string, q url.Values, into any) error {
	body, err := c.get(ctx, path, q)
	if err != nil {
		return err
	}
	defer body.Close()
	if err := json.NewDecoder(body).Decode(into); err != nil {
		return fmt.Errorf("read answer of %s: %w", c.where, err)
	}
	return nil
}

// get sends one request and gives the body of a good answer.
func (c *Client) get(ctx context.Context, path string, q url.Values) (io.ReadCloser, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+path+"?"+q.Encode(), nil)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", c.where, err)
	}
	if c.token != "" {
		request.Header.Set("Authorization", "Bearer "+c.token)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if response.StatusCode == http.StatusOK {
		return response.Body, nil
	}
	defer response.Body.Close()
	return nil, c.refusal(response)
}

// unreachable tells apart why no answer came.
func (c *Client) unreachable(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("ask %s: permission denied: be root or a member of the group tally", c.where)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w at %s: is tally up running, with this run dir?", ErrNotRunning, c.where)
	}
	return fmt.Errorf("ask %s: %w", c.where, err)
}

func (c *Client) refusal(response *http.Response) error {
	const enough = 4 << 10
	text, _ := io.ReadAll(io.LimitReader(response.Body, enough))
	said := strings.TrimSpace(string(text))
	switch response.StatusCode {
	case http.StatusUnauthorized:
		return fmt.Errorf("ask %s: the token is missing or wrong", c.where)
	case http.StatusNotFound:
		return fmt.Errorf("%s: %w", said, fs.ErrNotExist)
	}
	return fmt.Errorf("ask %s: %s: %s", c.where, response.Status, said)
}
