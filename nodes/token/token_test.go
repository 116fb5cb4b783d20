package token

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
)

func signer(t *testing.T, seed byte) *Signer {
	t.Helper()
	s, err := New(bytes.Repeat([]byte{seed}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func pod() *nodes.Pod {
	return &nodes.Pod{
		UID: "8c4a", Namespace: "shop", Name: "web-1", Node: "n1",
		Template: &nodes.Template{Spec: corev1.PodSpec{ServiceAccountName: "clerk"}},
	}
}

// publish serves what verifiers read; the result is the issuer.
func publish(t *testing.T, s *Signer) string {
	t.Helper()
	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	answer := func(make func() ([]byte, error)) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			body, err := make()
			if err != nil {
				t.Error(err)
			}
			_, _ = w.Write(body)
		}
	}
	mux.Handle("/.well-known/openid-configuration", answer(func() ([]byte, error) { return Discovery(server.URL, server.URL+KeysPath) }))
	mux.Handle(KeysPath, answer(s.Keys))
	return server.URL
}

// TestOthersVerifyTokens uses a verifier that knows nothing but the issuer.
func TestOthersVerifyTokens(t *testing.T) {
	s := signer(t, 1)
	issuer := publish(t, s)
	now := time.Now()
	signed, err := s.Sign(issuer, pod(), nodes.TokenRequest{Pod: "8c4a", Audience: "vault", Expiry: time.Hour}, now)
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	provider, err := oidc.NewProvider(ctx, issuer)
	if err != nil {
		t.Fatal(err)
	}
	verified, err := provider.Verifier(&oidc.Config{ClientID: "vault"}).Verify(ctx, signed.Value)
	if err != nil {
		t.Fatal(err)
	}
	if verified.Subject != "system:serviceaccount:shop:clerk" || !verified.Expiry.Equal(signed.Expires) || verified.Expiry.Sub(now.Truncate(time.Second)) != time.Hour {
		t.Errorf("token %+v", verified)
	}
	var claims map[string]any
	if err := verified.Claims(&claims); err != nil {
		t.Fatal(err)
	}
	if claims["jti"] == "" || claims["nbf"] != claims["iat"] {
		t.Errorf("claims %v", claims)
	}
	bound, _ := claims["kubernetes.io"].(map[string]any)
	account, _ := bound["serviceaccount"].(map[string]any)
	node, _ := bound["node"].(map[string]any)
	want := map[string]any{
		"namespace": "shop", "pod": map[string]any{"name": "web-1", "uid": "8c4a"},
		"node":           map[string]any{"name": "n1", "uid": node["uid"]},
		"serviceaccount": map[string]any{"name": "clerk", "uid": account["uid"]},
	}
	if diff := cmp.Diff(want, bound); diff != "" || account["uid"] == "" || account["uid"] == node["uid"] {
		t.Errorf("bound to %v: %s", bound, diff)
	}
	if _, err := provider.Verifier(&oidc.Config{ClientID: "database"}).Verify(ctx, signed.Value); err == nil {
		t.Error("a token for vault opens the database")
	}
	late := &oidc.Config{ClientID: "vault", Now: func() time.Time { return now.Add(2 * time.Hour) }}
	if _, err := provider.Verifier(late).Verify(ctx, signed.Value); err == nil {
		t.Error("an expired token was accepted")
	}
	forged, err := signer(t, 2).Sign(issuer, pod(), nodes.TokenRequest{Audience: "vault", Expiry: time.Hour}, now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := provider.Verifier(&oidc.Config{ClientID: "vault"}).Verify(ctx, forged.Value); err == nil {
		t.Error("a token that another key signed was accepted")
	}
}

func TestSameSeedVerifiesAfterARestart(t *testing.T) {
	before, err := signer(t, 1).Keys()
	if err != nil {
		t.Fatal(err)
	}
	after, err := signer(t, 1).Keys()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before, after) {
		t.Errorf("keys %s, then %s", before, after)
	}
	if bytes.Contains(before, []byte(`"d"`)) {
		t.Errorf("the key set holds the private key: %s", before)
	}
}

func TestWithoutAudienceItIsForTheIssuer(t *testing.T) {
	s := signer(t, 1)
	p := pod()
	p.Template.Spec.ServiceAccountName = ""
	issuer := publish(t, s)
	signed, err := s.Sign(issuer, p, nodes.TokenRequest{Expiry: MinExpiry}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	provider, err := oidc.NewProvider(context.Background(), issuer)
	if err != nil {
		t.Fatal(err)
	}
	verified, err := provider.Verifier(&oidc.Config{ClientID: issuer}).Verify(context.Background(), signed.Value)
	if err != nil || verified.Subject != "system:serviceaccount:shop:default" {
		t.Errorf("%+v, %v", verified, err)
	}
}

func TestRefusals(t *testing.T) {
	s := signer(t, 1)
	if _, err := s.Sign("", pod(), nodes.TokenRequest{Expiry: time.Hour}, time.Now()); err == nil {
		t.Error("signed without an issuer")
	}
	if _, err := s.Sign("https://x", pod(), nodes.TokenRequest{Expiry: MinExpiry - 1}, time.Now()); err == nil {
		t.Error("signed for less than Kubernetes allows")
	}
	if _, err := New([]byte("short")); err == nil {
		t.Error("made a key from nearly nothing")
	}
}
