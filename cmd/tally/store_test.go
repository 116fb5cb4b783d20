package main

import (
	"errors"
	"strings"
	"testing"
)

func TestStoreFlags(t *testing.T) {
	const store = "etcd://127.0.0.1:2379/p"
	good := func() serverOptions {
		return serverOptions{repo: "/repo.git", http: "127.0.0.1:7480", listen: ":7400", store: storeOptions{address: store}}
	}
	tests := map[string]struct {
		change func(o *serverOptions)
		want   string // empty: nothing is wrong
	}{
		"a store":                {func(*serverOptions) {}, ""},
		"no store":               {func(o *serverOptions) { o.store = storeOptions{}; o.repo = "" }, ""},
		"the embedded remote":    {func(o *serverOptions) { o.repo = "" }, "--store wants --repo"},
		"no agents":              {func(o *serverOptions) { o.listen = "" }, "--store wants --listen"},
		"another database":       {func(o *serverOptions) { o.store.address = "postgres://x" }, "want etcd://"},
		"a user":                 {func(o *serverOptions) { o.store.user, o.store.passwordFile = "u", "f" }, ""},
		"no password":            {func(o *serverOptions) { o.store.user = "u" }, "--store-user wants --store-password-file"},
		"a password of nobody":   {func(o *serverOptions) { o.store.passwordFile = "f" }, "--store-password-file wants --store-user"},
		"a certificate":          {func(o *serverOptions) { o.store.ca, o.store.cert, o.store.key = "a", "b", "c" }, ""},
		"a certificate, no key":  {func(o *serverOptions) { o.store.ca, o.store.cert = "a", "b" }, "--store-cert wants --store-key"},
		"a certificate, no CA":   {func(o *serverOptions) { o.store.cert, o.store.key = "b", "c" }, "--store-cert wants --store-ca"},
		"a CA of nothing":        {func(o *serverOptions) { o.store = storeOptions{ca: "a"} }, "--store-ca wants --store"},
		"an address for nobody":  {func(o *serverOptions) { o.store = storeOptions{advertise: "a:1"} }, "--advertise wants --store"},
		"an address with a port": {func(o *serverOptions) { o.store.advertise = "a:1" }, ""},
		"one without":            {func(o *serverOptions) { o.store.advertise = "a" }, "--advertise"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			o := good()
			test.change(&o)
			err := o.check()
			switch {
			case test.want == "" && err != nil:
				t.Error(err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want) || !errors.As(err, &usageError{})):
				t.Errorf("%v, want %q as wrong usage", err, test.want)
			}
		})
	}
}
