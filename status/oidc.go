package status

import "net/http"

// Where Kubernetes serves what verifies service-account tokens. Verifiers have
// no token of ours, so package access lets everybody read these.
const (
	discoveryPath = "/.well-known/openid-configuration"
	keysPath      = "/openid/v1/jwks"
)

// oidc makes the documents.
type oidc struct {
	document func(issuer, keys string) ([]byte, error)
	keys     func() ([]byte, error)
}

// discovery answers with the OIDC discovery document. Its key set is at this
// server, under the name that the request used.
func (s *Server) discovery(w http.ResponseWriter, r *http.Request) {
	issuer := s.cluster.Overview().Issuer
	if issuer == "" {
		plain(w, http.StatusServiceUnavailable, "the issuer is not known before a revision is in force\n")
		return
	}
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	body, err := s.oidc.document(issuer, scheme+"://"+r.Host+keysPath)
	s.writeDocument(w, "application/json", body, err)
}

// keys answers with the public keys.
func (s *Server) keys(w http.ResponseWriter, _ *http.Request) {
	body, err := s.oidc.keys()
	s.writeDocument(w, "application/jwk-set+json", body, err)
}

func (s *Server) writeDocument(w http.ResponseWriter, kind string, body []byte, err error) {
	if err != nil {
		s.log.Error("answer not encoded", "error", err)
		plain(w, http.StatusInternalServerError, "the answer can't be encoded\n")
		return
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Cache-Control", "public, max-age=3600")
	_, _ = w.Write(body)
}
