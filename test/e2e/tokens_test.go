//go:build e2e

package e2e_test

import (
	"context"
	"testing"

	"github.com/coreos/go-oidc/v3/oidc"
)

// TestTokens has a program that is not ours verify the token of a container.
func TestTokens(t *testing.T) {
	w := newWorld(t)
	w.clone.Write("account.yaml", "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: clerk}\n")
	w.clone.Write("pod.yaml", pod("holder", `serviceAccountName: clerk
securityContext: {runAsUser: 1000}
volumes:
  - name: token
    projected: {sources: [{serviceAccountToken: {audience: vault, expirationSeconds: 600, path: here/token}}]}
containers: [{name: main, image: `+insideImage+`, volumeMounts: [{name: token, mountPath: /tokens}]}]`))
	w.clone.Apply("a pod with a token")
	ip := w.ip("holder")
	token := ask[string](w, ip, "/file", "path", "/tokens/here/token")
	file := ask[struct {
		Mode string
		UID  int
	}](w, ip, "/stat", "path", "/tokens/here/token")
	if file.Mode != "-rw-------" || file.UID != 1000 {
		t.Errorf("the token's file has mode and owner %+v", file)
	}
	// The documents are read at the page's address; in production the issuer leads there.
	ctx := oidc.InsecureIssuerURLContext(context.Background(), "https://kubernetes.default.svc.cluster.local")
	provider, err := oidc.NewProvider(ctx, root)
	if err != nil {
		t.Fatal(err)
	}
	verified, err := provider.Verifier(&oidc.Config{ClientID: "vault"}).Verify(ctx, token)
	if err != nil {
		t.Fatal(err)
	}
	var claims struct {
		Kubernetes struct {
			Namespace string
			Pod       struct{ Name, UID string }
		} `json:"kubernetes.io"`
	}
	if err := verified.Claims(&claims); err != nil {
		t.Fatal(err)
	}
	held := w.pod("holder", ready)
	if verified.Subject != "system:serviceaccount:default:clerk" || claims.Kubernetes.Pod.Name != "holder" || claims.Kubernetes.Pod.UID != string(held.UID) {
		t.Errorf("subject %s, claims %+v, want those of pod %s", verified.Subject, claims, held.UID)
	}
	if _, err := provider.Verifier(&oidc.Config{ClientID: "database"}).Verify(ctx, token); err == nil {
		t.Error("a token for vault opens the database")
	}
}
