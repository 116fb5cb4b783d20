package spec

import (
	"encoding/base64"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

// PullAuths are the registry logins that the pod's imagePullSecrets hold.
// Secrets that are missing or unreadable are left out: the registry says what
// is lacking.
func (c *Context) PullAuths() []runtime.Auth {
	var auths []runtime.Auth
	for _, ref := range c.Pod.Template.Spec.ImagePullSecrets {
		config := c.Config(desired.Key{Kind: "Secret", Namespace: c.Pod.Namespace, Name: ref.Name})
		if config == nil {
			continue
		}
		if data, found := config.Data[".dockerconfigjson"]; found {
			var file struct {
				Auths map[string]login `json:"auths"`
			}
			if json.Unmarshal(data, &file) == nil {
				auths = append(auths, logins(file.Auths)...)
			}
		}
		if data, found := config.Data[".dockercfg"]; found {
			var file map[string]login
			if json.Unmarshal(data, &file) == nil {
				auths = append(auths, logins(file)...)
			}
		}
	}
	return auths
}

// login is one entry of Docker's configuration file.
type login struct {
	Username      string `json:"username"`
	Password      string `json:"password"`
	Auth          string `json:"auth"`
	IdentityToken string `json:"identitytoken"`
}

// logins turns the entries around, the longest (most specific) registry first.
func logins(entries map[string]login) []runtime.Auth {
	registries := slices.Sorted(maps.Keys(entries))
	slices.SortStableFunc(registries, func(a, b string) int { return len(b) - len(a) })
	var auths []runtime.Auth
	for _, registry := range registries {
		e := entries[registry]
		if raw, err := base64.StdEncoding.DecodeString(e.Auth); err == nil && e.Username == "" {
			e.Username, e.Password, _ = strings.Cut(string(raw), ":")
		}
		auths = append(auths, runtime.Auth{
			Registry: registryHost(registry), Username: e.Username,
			Password: strings.TrimRight(e.Password, "\x00"), IdentityToken: e.IdentityToken,
		})
	}
	return auths
}

// registryHost strips what Docker writes around a registry's name:
// "https://index.docker.io/v1/" is docker.io.
func registryHost(s string) string {
	s = strings.TrimPrefix(strings.TrimPrefix(s, "https://"), "http://")
	s = strings.TrimSuffix(s, "/")
	s = strings.TrimSuffix(strings.TrimSuffix(s, "/v1"), "/v2")
	if s == "index.docker.io" || s == "registry-1.docker.io" {
		return "docker.io"
	}
	return s
}
