package nodes

import (
	"encoding/json"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
)

// TokenRequest asks the server for a token of a pod's ServiceAccount. The
// server answers only for pods that are bound to the asking node, and only what
// the pod's volumes ask for.
type TokenRequest struct {
	Pod      UID
	Audience string
	// Expiry is for how long it is to hold.
	Expiry time.Duration
}

// Token is a signed service-account token.
type Token struct {
	Value   string
	Issued  time.Time
	Expires time.Time
}

// defaultTokenExpiry is Kubernetes' for a token that says none.
const defaultTokenExpiry = time.Hour

// TokenRequest is what a projected token of the pod asks for.
func (p *Pod) TokenRequest(s *corev1.ServiceAccountTokenProjection) TokenRequest {
	r := TokenRequest{Pod: p.UID, Audience: s.Audience, Expiry: defaultTokenExpiry}
	if s.ExpirationSeconds != nil {
		r.Expiry = time.Duration(*s.ExpirationSeconds) * time.Second
	}
	return r
}

// TokenRequests are all tokens that the pod's volumes hold, and that their CSI
// drivers ask for, each once. Driver gives a driver's CSIDriver object, nil for none.
func (p *Pod) TokenRequests(driver func(v *corev1.Volume) *Config) []TokenRequest {
	var list []TokenRequest
	add := func(s *corev1.ServiceAccountTokenProjection) {
		if r := p.TokenRequest(s); !slices.Contains(list, r) {
			list = append(list, r)
		}
	}
	for i := range p.Template.Spec.Volumes {
		v := &p.Template.Spec.Volumes[i]
		if v.Projected != nil {
			for _, source := range v.Projected.Sources {
				if source.ServiceAccountToken != nil {
					add(source.ServiceAccountToken)
				}
			}
		}
		if v.CSI == nil && p.Claim(v) == "" {
			continue
		}
		for _, r := range driverTokens(driver(v)) {
			add(&corev1.ServiceAccountTokenProjection{Audience: r.Audience, ExpirationSeconds: r.ExpirationSeconds})
		}
	}
	return list
}

// driverTokens are those that a CSIDriver object asks for.
func driverTokens(c *Config) []storagev1.TokenRequest {
	var s storagev1.CSIDriverSpec
	if c == nil || json.Unmarshal(c.Data[DriverSpec], &s) != nil {
		return nil // publishing says so
	}
	return s.TokenRequests
}
