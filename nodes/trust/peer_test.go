package trust

import (
	"crypto/tls"
	"testing"
)

func TestOnlyServersArePeers(t *testing.T) {
	a, _ := now(t, 1)
	other, _ := now(t, 2)
	asNode, err := joined(t, a, "n1").TLS()
	if err != nil {
		t.Fatal(err)
	}
	for what, test := range map[string]struct {
		client *tls.Config
		good   bool
	}{
		"a server of the cluster":        {a.PeerTLS(), true},
		"a server of another":            {other.PeerTLS(), false},
		"a node":                         {asNode, false},
		"somebody without a certificate": {&tls.Config{ServerName: ServerName, RootCAs: a.pool, MinVersion: tls.VersionTLS13}, false},
	} {
		config := a.ServerTLS()
		config.NextProtos = append(config.NextProtos, PeerProtocol)
		state, serverErr, clientErr := shake(t, config, test.client)
		good := serverErr == nil && clientErr == nil && a.CheckServer(state.PeerCertificates) == nil
		if good != test.good {
			t.Errorf("%s: %v, %v, %v", what, serverErr, clientErr, a.CheckServer(state.PeerCertificates))
		}
	}
}
