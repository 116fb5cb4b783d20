package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/proxy"
)

// freePort is one that nobody holds at this moment.
func freePort(t *testing.T) uint16 {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

func service(name string, port uint16, nodes ...string) *proxy.Service {
	s := &proxy.Service{Namespace: "default", Name: name, HealthCheckPort: port, ExternalLocal: true}
	for _, number := range []uint16{80, 443} {
		p := proxy.Port{Protocol: proxy.TCP, Port: number}
		for i, node := range nodes {
			p.Endpoints = append(p.Endpoints, proxy.Endpoint{Addr: netip.AddrFrom4([4]byte{10, 244, 0, byte(2 + i)}), Port: number, Node: node})
		}
		s.Ports = append(s.Ports, p)
	}
	return s
}

func serve(t *testing.T) *Server {
	s := New(slog.New(slog.NewTextHandler(t.Output(), nil)))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v", err)
		}
	})
	return s
}

// ask gives the status, the weight and the body, without white space.
func ask(port uint16) string {
	response, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/anything", port))
	if err != nil {
		return "no answer"
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprint(response.StatusCode, " ", response.Header.Get("X-Load-Balancing-Endpoint-Weight"), " ", strings.Join(strings.Fields(string(body)), ""))
}

func eventually(t *testing.T, port uint16, want string) {
	t.Helper()
	got := ""
	for range 1000 {
		if got = ask(port); got == want {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("port %d answers %q, want %q", port, got, want)
}

func TestAnswersAsKubeProxyDoes(t *testing.T) {
	s := serve(t)
	a, b := freePort(t), freePort(t)
	s.Set(&proxy.Table{Services: []*proxy.Service{
		service("web", a, "n1", "n2", "n1"), service("elsewhere", b, "n2"), service("unasked", 0, "n1"),
	}}, "n1")
	eventually(t, a, `200 2 {"service":{"namespace":"default","name":"web"},"localEndpoints":2,"serviceProxyHealthy":true}`)
	eventually(t, b, `503 0 {"service":{"namespace":"default","name":"elsewhere"},"localEndpoints":0,"serviceProxyHealthy":true}`)
	s.Set(&proxy.Table{Services: []*proxy.Service{service("elsewhere", b, "n1")}}, "n1")
	eventually(t, b, `200 1 {"service":{"namespace":"default","name":"elsewhere"},"localEndpoints":1,"serviceProxyHealthy":true}`)
	eventually(t, a, "no answer")
	s.Set(nil, "n1")
	eventually(t, b, "no answer")
}

func TestAPortThatIsHeldIsTriedAgain(t *testing.T) {
	l, err := net.Listen("tcp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	held, free := uint16(l.Addr().(*net.TCPAddr).Port), freePort(t)
	s := serve(t)
	s.Set(&proxy.Table{Services: []*proxy.Service{service("held", held, "n1"), service("web", free, "n1")}}, "n1")
	eventually(t, free, `200 1 {"service":{"namespace":"default","name":"web"},"localEndpoints":1,"serviceProxyHealthy":true}`)
	l.Close()
	eventually(t, held, `200 1 {"service":{"namespace":"default","name":"held"},"localEndpoints":1,"serviceProxyHealthy":true}`)
}
