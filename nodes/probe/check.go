package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// maxMessage bounds what of an answer is put into an event.
const maxMessage = 1 << 10

// Check asks once; nil means success. ctx carries the timeout.
func Check(ctx context.Context, t Target, exec Exec) error {
	h := t.Probe.ProbeHandler
	var err error
	switch {
	case h.HTTPGet != nil:
		err = HTTP(ctx, h.HTTPGet, t.IP, t.Ports)
	case h.TCPSocket != nil:
		err = connect(ctx, h.TCPSocket, t)
	case h.Exec != nil:
		err = run(ctx, h.Exec.Command, t.Container, exec)
	case h.GRPC != nil:
		err = health(ctx, h.GRPC, t)
	default:
		return errors.New("the probe names no handler")
	}
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("no answer within %s: %w", seconds(t.Probe.TimeoutSeconds, 1), err)
	}
	return err
}

// HTTP sends one GET and takes any status from 200 to 399 for success.
// Certificates are not verified. Lifecycle hooks use it too.
func HTTP(ctx context.Context, a *corev1.HTTPGetAction, ip netip.Addr, ports []corev1.ContainerPort) error {
	target, err := address(a, ip, ports)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return fmt.Errorf("make request for %s: %w", target, err)
	}
	headers(request, a.HTTPHeaders)
	client := &http.Client{Transport: fresh{}, CheckRedirect: sameHost(request.URL.Hostname())}
	response, err := client.Do(request)
	if err != nil {
		return shorten(err)
	}
	defer response.Body.Close()
	if response.StatusCode >= 200 && response.StatusCode < 400 {
		return nil
	}
	body, _ := io.ReadAll(io.LimitReader(response.Body, maxMessage))
	return fmt.Errorf("HTTP probe failed with statuscode: %d%s", response.StatusCode, after(body))
}

func after(body []byte) string {
	text := strings.TrimSpace(strings.ToValidUTF8(string(body), "?"))
	if text == "" {
		return ""
	}
	return ": " + text
}

func address(a *corev1.HTTPGetAction, ip netip.Addr, ports []corev1.ContainerPort) (string, error) {
	port, err := number(a.Port, ports)
	if err != nil {
		return "", err
	}
	host := a.Host
	if host == "" {
		host = ip.String()
	}
	scheme := strings.ToLower(string(a.Scheme))
	if scheme == "" {
		scheme = "http"
	}
	u, err := url.Parse(a.Path)
	if err != nil {
		u = &url.URL{Path: a.Path}
	}
	u.Scheme, u.Host = scheme, net.JoinHostPort(host, strconv.Itoa(port))
	return u.String(), nil
}

func headers(r *http.Request, list []corev1.HTTPHeader) {
	r.Header.Set("User-Agent", "tally-probe/1")
	r.Header.Set("Accept", "*/*")
	seen := map[string]bool{}
	for _, h := range list {
		name := http.CanonicalHeaderKey(h.Name)
		switch {
		case name == "Host":
			r.Host = h.Value
		case !seen[name]:
			seen[name] = true
			r.Header.Del(name)
			if h.Value != "" {
				r.Header.Set(name, h.Value)
			}
		default:
			r.Header.Add(name, h.Value)
		}
	}
}

// sameHost follows redirects on the probed host; one that leads elsewhere is
// an answer, and so a success.
func sameHost(host string) func(*http.Request, []*http.Request) error {
	return func(next *http.Request, via []*http.Request) error {
		if next.URL.Hostname() != host {
			return http.ErrUseLastResponse
		}
		if len(via) >= 10 {
			return errors.New("stopped after 10 redirects")
		}
		return nil
	}
}

// shorten takes the method and address off a client's error.
func shorten(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}

func connect(ctx context.Context, a *corev1.TCPSocketAction, t Target) error {
	port, err := number(a.Port, t.Ports)
	if err != nil {
		return err
	}
	host := a.Host
	if host == "" {
		host = t.IP.String()
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return err
	}
	return c.Close()
}

func run(ctx context.Context, command []string, container string, exec Exec) error {
	var out bytes.Buffer
	code, err := exec(ctx, container, command, &out)
	if err != nil {
		return err
	}
	if code == 0 {
		return nil
	}
	return fmt.Errorf("command exited with %d%s", code, after(out.Bytes()[:min(out.Len(), maxMessage)]))
}

func health(ctx context.Context, a *corev1.GRPCAction, t Target) error {
	target := net.JoinHostPort(t.IP.String(), strconv.Itoa(int(a.Port)))
	conn, err := grpc.NewClient("passthrough:///"+target,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUserAgent("tally-probe/1"), grpc.WithNoProxy())
	if err != nil {
		return err
	}
	defer conn.Close()
	service := ""
	if a.Service != nil {
		service = *a.Service
	}
	answer, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: service})
	if status.Code(err) == codes.Unimplemented {
		return errors.New("the server does not implement the grpc health protocol (grpc.health.v1.Health)")
	}
	if err != nil {
		return fmt.Errorf("health rpc: %s", status.Convert(err).Message())
	}
	if answer.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		return fmt.Errorf("service answers %s", answer.Status)
	}
	return nil
}

// number resolves a port given by name.
func number(port intstr.IntOrString, ports []corev1.ContainerPort) (int, error) {
	if port.Type == intstr.Int {
		return port.IntValue(), nil
	}
	for _, p := range ports {
		if p.Name == port.StrVal {
			return int(p.ContainerPort), nil
		}
	}
	if n, err := strconv.Atoi(port.StrVal); err == nil {
		return n, nil
	}
	return 0, fmt.Errorf("the container has no port named %q", port.StrVal)
}
