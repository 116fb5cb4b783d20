package registry

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/wire/pb"
)

// asking is what a pod is made from whose volume has a token.
func asking(audience string, seconds int64) *nodes.Template {
	return &nodes.Template{Hash: "h", Spec: corev1.PodSpec{Volumes: []corev1.Volume{{Name: "token", VolumeSource: corev1.VolumeSource{
		Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: audience, ExpirationSeconds: &seconds}},
		}},
	}}}}}
}

func tokenRequest(node, pod, audience string, seconds int64) *pb.TokenRequest {
	return &pb.TokenRequest{Node: node, Pod: pod, Audience: audience, Expiry: int64(time.Duration(seconds) * time.Second)}
}

// TestANodeGetsOnlyTokensThatItsPodsAskFor: with a valid certificate, for pods that
// are the node's own.
func TestANodeGetsOnlyTokensThatItsPodsAskFor(t *testing.T) {
	driver := func(name, audience string) *nodes.Config {
		spec := fmt.Sprintf(`{"tokenRequests": [{"audience": %q, "expirationSeconds": 3600}]}`, audience)
		return &nodes.Config{Key: nodes.DriverKey(name), Data: map[string][]byte{nodes.DriverSpec: []byte(spec)}}
	}
	using := func(v corev1.VolumeSource) *nodes.Template {
		return &nodes.Template{Hash: "h", Spec: corev1.PodSpec{Volumes: []corev1.Volume{{Name: "v", VolumeSource: v}}}}
	}
	claim := func(name string) corev1.VolumeSource {
		return corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}}
	}
	volume := func(name, driver string) *nodes.Volume {
		return &nodes.Volume{Name: name, Claim: desired.Key{Kind: "PersistentVolumeClaim", Namespace: "default", Name: name}, Provisioner: driver}
	}
	pods := []*nodes.Pod{
		{UID: "1", Name: "projected", Template: asking("vault", 600)},
		{UID: "2", Name: "none", Template: using(corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}})},
		{UID: "3", Name: "issuer", Template: asking("", 600)},
		{UID: "4", Name: "inline", Template: using(corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: "one"}})},
		{UID: "5", Name: "claim", Template: using(claim("two"))},
		{UID: "6", Name: "local", Template: using(claim("local"))},
	}
	w := newTown(t)
	for _, p := range pods {
		p.Node, p.Namespace = "a", "default"
	}
	w.Assign(nodes.Assignment{
		Node: "a", Pods: pods, Configs: []*nodes.Config{driver("one", "first"), driver("two", "second")},
		Volumes: []*nodes.Volume{volume("local", nodes.LocalProvisioner), volume("two", "two")},
	})
	service := w.service(w.tls(w.citizen("a")))
	for _, c := range []struct {
		pod, audience string
		seconds       int64
		want          string
	}{
		{"1", "vault", 600, ""},
		{"1", "vault", 601, "that holds for 10m1s"},
		{"1", "https://kubernetes.default.svc.cluster.local", 600, "no token for audience"},
		{"1", "", 600, "no token for audience"},
		{"2", "vault", 600, "no token for audience"},
		{"2", "", 600, "no token for audience"},
		{"3", "", 600, ""},
		{"3", "vault", 600, "no token for audience"},
		{"4", "first", 3600, ""},
		{"4", "first", 100_000, "that holds for"},
		{"4", "second", 3600, "no token for audience"},
		{"5", "second", 3600, ""},
		{"5", "first", 3600, "no token for audience"},
		{"6", "second", 3600, "no token for audience"},
	} {
		_, err := service.Token(t.Context(), tokenRequest("a", c.pod, c.audience, c.seconds))
		switch {
		case c.want != "":
			w.refused(fmt.Sprintf("%+v", c), err, c.want)
		case err != nil:
			t.Errorf("%+v: %v", c, err)
		}
	}
}
