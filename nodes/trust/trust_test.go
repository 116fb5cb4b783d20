package trust

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/trust/trusttest"
)

var noon = time.Date(2031, time.May, 4, 12, 0, 0, 0, time.UTC)

// clock is a wall clock that tests set.
type clock struct{ now time.Time }

func (c *clock) read() time.Time { return c.now }

func newAuthority(t testing.TB, secret byte) (*Authority, *clock) {
	t.Helper()
	c := &clock{noon}
	a, err := New(bytes.Repeat([]byte{secret}, keySize), c.read)
	if err != nil {
		t.Fatal(err)
	}
	return a, c
}

// TestTheKeyIsTheAuthority: whoever has it makes the same certificate, byte for
// byte, in every version of Tallyman.
func TestTheKeyIsTheAuthority(t *testing.T) {
	a, _ := newAuthority(t, 1)
	again, _ := newAuthority(t, 1)
	other, _ := newAuthority(t, 2)
	if !bytes.Equal(a.certificate.Raw, again.certificate.Raw) || a.Hash() != again.Hash() {
		t.Error("one key gives two authorities")
	}
	if a.Hash() == other.Hash() {
		t.Error("two keys give one authority")
	}
	const golden = "7fdafb64e5c74d0e41e9f136de6aceea66739dbb384eb75b64d9db55cbca736a"
	if hash := a.Hash(); hex.EncodeToString(hash[:]) != golden {
		t.Errorf("the authority of a known key is %x, want %s: every cluster's would change", a.Hash(), golden)
	}
	if _, err := New(make([]byte, keySize-1), time.Now); err == nil {
		t.Error("a short secret is taken")
	}
}

func TestTokensSayWhatTheyAreGoodFor(t *testing.T) {
	a, _ := newAuthority(t, 1)
	rapid.Check(t, func(t *rapid.T) {
		want := Token{
			Expires: noon.Add(time.Duration(rapid.Int64Range(1, int64(24*time.Hour/time.Second)).Draw(t, "ttl")) * time.Second),
			Node:    rapid.StringMatching(`[a-z][a-z0-9.-]{0,40}[a-z0-9]`).Filter(func(s string) bool { return CheckName(s) == nil }).Draw(t, "node"),
			Uses:    rapid.IntRange(0, maxUses).Draw(t, "uses"), Replace: rapid.Bool().Draw(t, "replace"),
		}
		text, err := a.NewToken(want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := a.CheckToken("  "+text+"\n", want.Node)
		if err != nil {
			t.Fatal(err)
		}
		want.Authority, want.ID = a.Hash(), got.ID
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("token differs (-want +got):\n%s", diff)
		}
		// One letter that is not as it was is enough.
		i := rapid.IntRange(0, len(text)-1).Draw(t, "at")
		letter := rapid.SampledFrom([]byte("ABCxyz019-_.")).Draw(t, "letter")
		if changed := text[:i] + string(letter) + text[i+1:]; changed != text {
			if _, err := a.CheckToken(changed, want.Node); err == nil {
				t.Errorf("%s is believed though made as %s", changed, text)
			}
		}
		if _, err := a.CheckToken(text[:i], want.Node); err == nil {
			t.Errorf("%s is believed though cut off", text[:i])
		}
	})
}

func TestTokensAreRefusedWithASentence(t *testing.T) {
	a, now := newAuthority(t, 1)
	other, _ := newAuthority(t, 2)
	make := func(a *Authority, o Token) string {
		text, err := a.NewToken(o)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	hour := noon.Add(time.Hour)
	forged := make(other, Token{Expires: hour})
	forgedRaw, _ := encoding.DecodeString(strings.TrimPrefix(forged, tokenPrefix))
	hash := a.Hash()
	copy(forgedRaw[1:], hash[:])
	for _, c := range []struct {
		name, token, node, want string
		late                    time.Duration
	}{
		{"good", make(a, Token{Expires: hour}), "n", "", 0},
		{"for the node", make(a, Token{Expires: hour, Node: "n"}), "n", "", 0},
		{"for another node", make(a, Token{Expires: hour, Node: "m"}), "n", "for node m, not n", 0},
		{"expired", make(a, Token{Expires: hour}), "n", "expired on 2031-05-04T13:00:00Z", time.Hour},
		{"of another cluster", make(other, Token{Expires: hour}), "n", "of another cluster", 0},
		{"forged for this one", tokenPrefix + encoding.EncodeToString(forgedRaw), "n", "not made by this cluster", 0},
		{"no token", "abc", "n", "begins with tally1.", 0},
		{"empty", "", "n", "begins with tally1.", 0},
		{"no text", tokenPrefix + "ä", "n", "damaged", 0},
		{"cut off", make(a, Token{Expires: hour})[:31], "n", "cut off", 0},
	} {
		now.now = noon.Add(c.late)
		_, err := a.CheckToken(c.token, c.node)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	now.now = noon
	for _, o := range []Token{
		{Expires: noon},
		{Expires: hour, Uses: -1},
		{Expires: hour, Uses: maxUses + 1},
		{Expires: noon.Add(unboundedFor + time.Second)},
		{Expires: hour, Replace: true},
		{Expires: hour, Node: "No Name"},
	} {
		if text, err := a.NewToken(o); err == nil {
			t.Errorf("%+v makes %s", o, text)
		}
	}
	if _, err := a.NewToken(Token{Expires: noon.Add(30 * 24 * time.Hour), Uses: 1}); err != nil {
		t.Errorf("a bounded token for a month: %v", err)
	}
}

// TestNodesCanNeitherReadNorChangeTheLedger that they keep.
func TestNodesCanNeitherReadNorChangeTheLedger(t *testing.T) {
	a, _ := newAuthority(t, 1)
	other, _ := newAuthority(t, 2)
	rapid.Check(t, func(t *rapid.T) {
		word := rapid.StringMatching(`[a-z]{4,12}`)
		d := nodes.Decision{Kind: word.Draw(t, "kind"), Key: word.Draw(t, "key")}
		d.Value, _ = json.Marshal(word.Draw(t, "value"))
		sealed, err := a.Seal(d)
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(sealed)
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range []string{d.Key, string(d.Value)} {
			if bytes.Contains(text, []byte(secret)) {
				t.Errorf("%s tells %s", text, secret)
			}
		}
		opened, err := a.Open(sealed)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(d, opened); diff != "" {
			t.Errorf("opened is not what was sealed (-want +got):\n%s", diff)
		}
		if _, err := other.Open(sealed); err == nil {
			t.Error("another key opens it")
		}
		changed := sealed
		changed.Value = bytes.Clone(sealed.Value)
		i := rapid.IntRange(0, len(changed.Value)-1).Draw(t, "at")
		changed.Value[i] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		if got, err := a.Open(changed); err == nil && !cmp.Equal(got, d) {
			t.Errorf("a changed entry opens as %+v", got)
		}
		forgotten, err := a.Seal(nodes.Decision{Kind: d.Kind, Key: d.Key})
		if err != nil || forgotten.Key != sealed.Key || forgotten.Value != nil {
			t.Errorf("what forgets %+v is %+v, %v", sealed, forgotten, err)
		}
	})
	if _, err := a.Open(nodes.Decision{Kind: "service", Key: "a", Value: json.RawMessage("1")}); !errors.Is(err, ErrUnsealed) {
		t.Errorf("what bears no seal: %v", err)
	}
	// An entry in the place of another is not believed.
	x, _ := a.Seal(nodes.Decision{Kind: "k", Key: "x", Value: json.RawMessage("1")})
	y, _ := a.Seal(nodes.Decision{Kind: "k", Key: "y", Value: json.RawMessage("2")})
	x.Value = y.Value
	if got, err := a.Open(x); err == nil {
		t.Errorf("an entry under another's name opens as %+v", got)
	}
}

// shake makes a connection between a server and a client, and returns how each
// end sees it.
func shake(t *testing.T, server, client *tls.Config) (state tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := listener.Accept()
		if err != nil {
			serverErr = err
			return
		}
		defer conn.Close()
		secured := tls.Server(conn, server)
		serverErr = secured.HandshakeContext(ctx)
		state = secured.ConnectionState()
	}()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	clientErr = tls.Client(conn, client).HandshakeContext(ctx)
	<-done
	return state, serverErr, clientErr
}

func joined(t *testing.T, a *Authority, name string) *Node {
	t.Helper()
	n, err := OpenNode(filepath.Join(t.TempDir(), "tls"))
	if err != nil {
		t.Fatal(err)
	}
	trusttest.Join[Hash](t, n, a, name)
	return n
}

// now lets an authority live in the present: the client's clock is the machine's.
func now(t *testing.T, secret byte) (*Authority, *clock) {
	a, c := newAuthority(t, secret)
	c.now = time.Now()
	return a, c
}

func TestBothSidesKnowEachOther(t *testing.T) {
	a, clock := now(t, 1)
	other, _ := now(t, 2)
	n := joined(t, a, "n1")
	config, err := n.TLS()
	if err != nil {
		t.Fatal(err)
	}
	state, serverErr, clientErr := shake(t, a.ServerTLS(), config)
	if serverErr != nil || clientErr != nil || state.Version != tls.VersionTLS13 {
		t.Fatalf("server %v, client %v, version %x", serverErr, clientErr, state.Version)
	}
	id, err := a.Identify(state.PeerCertificates)
	if err != nil || id.Node != "n1" || len(id.Key) != 64 || !id.Expires.Equal(n.Expires()) {
		t.Errorf("the server sees %+v, %v", id, err)
	}
	if _, err := other.Identify(state.PeerCertificates); err == nil || !strings.Contains(err.Error(), "not of this cluster") {
		t.Errorf("another cluster's server says %v", err)
	}
	clock.now = n.Expires().Add(time.Second)
	if _, err := a.Identify(state.PeerCertificates); err == nil || !strings.Contains(err.Error(), "expired on") {
		t.Errorf("after its time: %v", err)
	}
	clock.now = time.Now()
	if _, err := a.Identify(nil); !errors.Is(err, ErrNoCertificate) {
		t.Errorf("without a certificate: %v", err)
	}
	if _, _, err := shake(t, other.ServerTLS(), config); err == nil {
		t.Error("a node talks to another cluster's server")
	}
	own, err := a.serverCertificate(clock.now)
	if err != nil {
		t.Fatal(err)
	}
	if id, err := a.Identify([]*x509.Certificate{own.Leaf}); err == nil {
		t.Errorf("a server's certificate passes for %+v", id)
	}
	asServer := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		return config.GetClientCertificate(nil)
	}}
	for name, client := range map[string]*tls.Config{"a node": config, "a new machine": JoinTLS(a.Hash())} {
		if _, _, err := shake(t, asServer, client); err == nil {
			t.Errorf("%s takes a node for a server", name)
		}
	}
	old := config.Clone()
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if _, serverErr, _ := shake(t, a.ServerTLS(), old); serverErr == nil {
		t.Error("a server speaks TLS 1.2")
	}
	aged := a.ServerTLS()
	aged.MinVersion, aged.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if _, _, clientErr := shake(t, aged, config); clientErr == nil {
		t.Error("a node speaks TLS 1.2")
	}
}

func TestANewMachineTrustsTheHashAlone(t *testing.T) {
	a, _ := now(t, 1)
	other, _ := now(t, 2)
	if _, serverErr, clientErr := shake(t, a.ServerTLS(), JoinTLS(a.Hash())); serverErr != nil || clientErr != nil {
		t.Errorf("server %v, client %v", serverErr, clientErr)
	}
	_, _, err := shake(t, other.ServerTLS(), JoinTLS(a.Hash()))
	var wrong *OtherClusterError
	if !errors.As(err, &wrong) || wrong.Have != other.Hash() || wrong.Want != a.Hash() {
		t.Errorf("another cluster's server: %v", err)
	}
	// A server that shows the right authority beside a certificate of its own.
	liar := other.ServerTLS()
	get := liar.GetCertificate
	liar.GetCertificate = func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		c, err := get(h)
		if err == nil {
			c.Certificate = [][]byte{c.Certificate[0], a.certificate.Raw}
		}
		return c, err
	}
	if _, _, err := shake(t, liar, JoinTLS(a.Hash())); err == nil {
		t.Error("a server is believed that only shows somebody else's authority")
	}
}

func TestServersRenewTheirCertificate(t *testing.T) {
	a, clock := newAuthority(t, 1)
	get := a.ServerTLS().GetCertificate
	first, err := get(nil)
	if err != nil {
		t.Fatal(err)
	}
	clock.now = noon.Add(serverLifetime/3 - 2*skew)
	if again, err := get(nil); err != nil || again != first {
		t.Errorf("made anew too early, %v", err)
	}
	clock.now = noon.Add(serverLifetime / 2)
	next, err := get(nil)
	if err != nil || next == first || !next.Leaf.NotAfter.Equal(clock.now.Add(serverLifetime)) {
		t.Errorf("not made anew: %v", err)
	}
}

func TestANodeKeepsItsIdentity(t *testing.T) {
	a, clock := newAuthority(t, 1)
	other, _ := newAuthority(t, 2)
	n := joined(t, a, "n1")
	again, err := OpenNode(n.dir)
	if err != nil {
		t.Fatal(err)
	}
	if again.Name() != "n1" || !again.Expires().Equal(noon.Add(nodeLifetime)) || again.RenewAt().After(noon.Add(nodeLifetime/3)) {
		t.Errorf("reopened: %s until %s, renewed at %s", again.Name(), again.Expires(), again.RenewAt())
	}
	request, err := again.Request("n1")
	if err != nil {
		t.Fatal(err)
	}
	id, err := ReadRequest("n1", request)
	if err != nil {
		t.Fatal(err)
	}
	clock.now = noon.Add(nodeLifetime / 2)
	chain, err := a.Certify("n1", request)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Keep(chain, Hash{}); err != nil {
		t.Fatal(err)
	}
	if renewed, err := a.Identify(again.kept()); err != nil || renewed.Key != id.Key || !renewed.Expires.Equal(clock.now.Add(nodeLifetime)) {
		t.Errorf("renewed: %+v, %v; want key %s", renewed, err, id.Key)
	}
	foreign, err := other.Certify("n1", request)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Keep(foreign, Hash{}); err == nil {
		t.Error("the certificate of another cluster is kept")
	}
	if err := again.Keep([][]byte{chain[0]}, Hash{}); err == nil {
		t.Error("a chain without its authority is kept")
	}
	mine, err := joined(t, a, "n2").Request("n2")
	if err != nil {
		t.Fatal(err)
	}
	if chain, err = a.Certify("n2", mine); err != nil {
		t.Fatal(err)
	}
	if err := again.Keep(chain, Hash{}); err == nil {
		t.Error("the certificate for another key is kept")
	}
	files, err := os.ReadDir(n.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if info, err := f.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", f.Name(), info.Mode(), err)
		}
	}
}

// TestADamagedNodeSaysSo, with the file and the next step.
func TestADamagedNodeSaysSo(t *testing.T) {
	a, _ := newAuthority(t, 1)
	for _, file := range []string{keyFile, certificateFile} {
		n := joined(t, a, "n1")
		if err := os.WriteFile(filepath.Join(n.dir, file), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := OpenNode(n.dir)
		if err == nil || !strings.Contains(err.Error(), file) || !strings.Contains(err.Error(), "join again") {
			t.Errorf("damaged %s: %v", file, err)
		}
	}
}

func TestRequestsAreHeldToTheirKey(t *testing.T) {
	a, _ := newAuthority(t, 1)
	n := joined(t, a, "n1")
	request, err := n.Request("n1")
	if err != nil {
		t.Fatal(err)
	}
	damaged := bytes.Clone(request)
	damaged[len(damaged)-1] ^= 1
	for name, c := range map[string]struct {
		node    string
		request []byte
	}{"another's signature": {"n1", damaged}, "nothing": {"n1", nil}, "no name": {"", request}, "a path": {"../n1", request}} {
		if _, err := a.Certify(c.node, c.request); err == nil {
			t.Errorf("%s: certified", name)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	a, _ := newAuthority(f, 1)
	text, err := a.NewToken(Token{Expires: noon.Add(time.Hour), Node: "n"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Fuzz(func(t *testing.T, text string) {
		if got, err := a.CheckToken(text, "n"); err == nil && got.Authority != a.Hash() {
			t.Errorf("%q is believed as %+v", text, got)
		}
	})
}
