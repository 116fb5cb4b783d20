package etcd

import (
	"fmt"
	"testing"
)

func TestParseAddress(t *testing.T) {
	for address, want := range map[string]string{
		"etcd://a:1,b:2/p/q/":  "[a:1 b:2] p/q",
		"etcd://a":             "[a:2379] tallyman",
		"etcd://[::1]:1/":      "[[::1]:1] tallyman",
		"etcd://10.0.0.1/prod": "[10.0.0.1:2379] prod",
	} {
		endpoints, prefix, err := ParseAddress(address)
		if got := fmt.Sprint(endpoints, " ", prefix); err != nil || got != want {
			t.Errorf("%s: %s, %v", address, got, err)
		}
	}
	for _, address := range []string{"", "a:1", "http://a", "etcd://", "etcd:///p", "etcd://a,,b/p", "etcd://user@a/p", "etcd://a:x/p", "etcd://a/p?q=1"} {
		if endpoints, prefix, err := ParseAddress(address); err == nil {
			t.Errorf("%s: %v %s", address, endpoints, prefix)
		}
	}
}
