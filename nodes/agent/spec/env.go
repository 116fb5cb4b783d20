package spec

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/third_party/forked/golang/expansion"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
	"github.com/tallyman-dev/tallyman/proxy"
)

// Environment is a container's environment as "K=V", without what the image
// adds: service links first, then envFrom, then env, a later one of the same
// name replacing an earlier one in its place.
func (c *Context) Environment(container *corev1.Container) ([]string, error) {
	vars := &variables{values: map[string]string{}}
	if links := c.Pod.Template.Spec.EnableServiceLinks; links == nil || *links {
		vars.addAll(ServiceLinks(c.Services, c.Pod.Namespace), "")
	}
	for _, from := range container.EnvFrom {
		data, err := c.source(from)
		if err != nil {
			return nil, err
		}
		vars.addAll(data, from.Prefix)
	}
	for _, v := range container.Env {
		value, set, err := c.value(v, container, vars)
		if err != nil {
			return nil, fmt.Errorf("environment variable %s: %w", v.Name, err)
		}
		if set {
			vars.add(v.Name, value)
		}
	}
	// The runtime would refuse it too, but in a message that quotes the value.
	for _, name := range vars.names {
		if strings.Contains(vars.values[name], "\x00") {
			return nil, fmt.Errorf("environment variable %s: its value holds a NUL byte", name)
		}
	}
	return vars.list(), nil
}

func (c *Context) source(from corev1.EnvFromSource) (map[string]string, error) {
	key, optional := desired.Key{Namespace: c.Pod.Namespace}, (*bool)(nil)
	switch {
	case from.ConfigMapRef != nil:
		key.Kind, key.Name, optional = "ConfigMap", from.ConfigMapRef.Name, from.ConfigMapRef.Optional
	case from.SecretRef != nil:
		key.Kind, key.Name, optional = "Secret", from.SecretRef.Name, from.SecretRef.Optional
	default:
		return nil, nil
	}
	config := c.Config(key)
	if config == nil {
		if optional != nil && *optional {
			return nil, nil
		}
		return nil, missing(key)
	}
	data := make(map[string]string, len(config.Data))
	for k, v := range config.Data {
		if from.ConfigMapRef != nil && isBinary(config, k) {
			continue
		}
		data[k] = string(v)
	}
	return data, nil
}

// isBinary reports whether a key of a ConfigMap is for files alone: one of its
// binaryData, or, in a record of a version that did not tell them apart, content
// that no data can hold.
func isBinary(c *nodes.Config, key string) bool {
	content := c.Data[key]
	return slices.Contains(c.Binary, key) || !utf8.Valid(content) || slices.Contains(content, 0)
}

func missing(key desired.Key) error {
	return fmt.Errorf("%s %q not found", strings.ToLower(key.Kind), key.Name)
}

// value resolves one variable; set is false when an optional source is not there.
func (c *Context) value(v corev1.EnvVar, container *corev1.Container, vars *variables) (value string, set bool, err error) {
	if v.ValueFrom == nil {
		return expansion.Expand(v.Value, vars.lookup), true, nil
	}
	switch from := v.ValueFrom; {
	case from.FieldRef != nil:
		value, err = c.Field(from.FieldRef)
		return value, true, err
	case from.ResourceFieldRef != nil:
		value, err = c.Resource(from.ResourceFieldRef, container)
		return value, true, err
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		return c.entry("ConfigMap", ref.Name, ref.Key, ref.Optional)
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		return c.entry("Secret", ref.Name, ref.Key, ref.Optional)
	case from.FileKeyRef != nil:
		return c.fileEntry(from.FileKeyRef)
	}
	return "", false, fmt.Errorf("this kind of valueFrom is not supported")
}

func (c *Context) entry(kind, name, key string, optional *bool) (string, bool, error) {
	object := desired.Key{Kind: kind, Namespace: c.Pod.Namespace, Name: name}
	config := c.Config(object)
	if config != nil {
		if data, found := config.Data[key]; found && (kind != "ConfigMap" || !isBinary(config, key)) {
			return string(data), true, nil
		}
	}
	if optional != nil && *optional {
		return "", false, nil
	}
	if config == nil {
		return "", false, missing(object)
	}
	return "", false, fmt.Errorf("couldn't find key %s in %s %s/%s", key, kind, c.Pod.Namespace, name)
}

// fileEntry takes a variable out of a file that a container wrote.
func (c *Context) fileEntry(ref *corev1.FileKeySelector) (string, bool, error) {
	data, err := c.File(ref.VolumeName, ref.Path)
	if err != nil {
		return "", false, err
	}
	value, err := envFile(string(data), ref.Key)
	if err != nil {
		return "", false, fmt.Errorf("file %s of volume %s: %w", ref.Path, ref.VolumeName, err)
	}
	if value != "" {
		return value, true, nil
	}
	if ref.Optional != nil && *ref.Optional {
		return "", false, nil
	}
	return "", false, fmt.Errorf("key %s not found in file %s of volume %s", ref.Key, ref.Path, ref.VolumeName)
}

// variables keeps the order in which names first appeared.
type variables struct {
	names  []string
	values map[string]string
}

func (v *variables) add(name, value string) {
	if _, found := v.values[name]; !found {
		v.names = append(v.names, name)
	}
	v.values[name] = value
}

func (v *variables) addAll(data map[string]string, prefix string) {
	for _, k := range slices.Sorted(maps.Keys(data)) {
		v.add(prefix+k, data[k])
	}
}

func (v *variables) lookup(name string) string {
	if value, found := v.values[name]; found {
		return value
	}
	return "$(" + name + ")"
}

func (v *variables) list() []string {
	list := make([]string, len(v.names))
	for i, name := range v.names {
		list[i] = name + "=" + v.values[name]
	}
	return list
}

// fromList is the inverse of list.
func fromList(env []string) *variables {
	v := &variables{values: make(map[string]string, len(env))}
	for _, e := range env {
		name, value, _ := strings.Cut(e, "=")
		v.add(name, value)
	}
	return v
}

// Expand replaces $(NAME) by the value in env ("K=V"); $$ escapes, unknown
// names stay as they are.
func Expand(text string, env []string) string {
	if !strings.Contains(text, "$") {
		return text
	}
	return expansion.Expand(text, fromList(env).lookup)
}

// ExpandPath is Expand for subPathExpr, where an unknown name is an error.
func ExpandPath(text string, env []string) (string, error) {
	vars, unknown := fromList(env), ""
	path := expansion.Expand(text, func(name string) string {
		value, found := vars.values[name]
		if !found {
			unknown = name
		}
		return value
	})
	if unknown != "" {
		return "", fmt.Errorf("subPathExpr %q: no environment variable %s", text, unknown)
	}
	return path, nil
}

// Process merges a manifest's command with the image's configuration. env is
// what Environment returned.
func Process(container *corev1.Container, env []string, image runtime.ImageConfig, hostname string) (args, merged []string, dir string, err error) {
	command, tail := image.Entrypoint, image.Cmd
	if len(container.Command) > 0 {
		command, tail = expandAll(container.Command, env), nil
	}
	if len(container.Args) > 0 {
		tail = expandAll(container.Args, env)
	}
	args = slices.Concat(command, tail)
	if len(args) == 0 {
		return nil, nil, "", fmt.Errorf("no command specified: neither the image nor the manifest names one")
	}
	vars := &variables{values: map[string]string{}}
	vars.add("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	vars.add("HOSTNAME", hostname)
	if container.TTY {
		vars.add("TERM", "xterm")
	}
	for _, e := range slices.Concat(image.Env, env) {
		name, value, _ := strings.Cut(e, "=")
		vars.add(name, value)
	}
	dir = container.WorkingDir
	if dir == "" {
		dir = image.WorkingDir
	}
	if !strings.HasPrefix(dir, "/") {
		dir = "/" + dir
	}
	return args, vars.list(), dir, nil
}

func expandAll(words, env []string) []string {
	expanded := make([]string, len(words))
	for i, w := range words {
		expanded[i] = Expand(w, env)
	}
	return expanded
}

// ServiceLinks are the variables that name the services of a namespace, in
// Kubernetes' own form and in that of Docker's links.
func ServiceLinks(table *proxy.Table, namespace string) map[string]string {
	env := map[string]string{}
	if table == nil {
		return env
	}
	i, _ := slices.BinarySearchFunc(table.Services, namespace, func(s *proxy.Service, ns string) int {
		return strings.Compare(s.Namespace, ns)
	})
	for _, s := range table.Services[i:] {
		if s.Namespace != namespace {
			break
		}
		if len(s.ClusterIPs) > 0 && len(s.Ports) > 0 {
			serviceLink(env, s)
		}
	}
	return env
}

func serviceLink(env map[string]string, s *proxy.Service) {
	name, host := variableName(s.Name), s.ClusterIPs[0].String()
	env[name+"_SERVICE_HOST"] = host
	for i, p := range s.Ports {
		port := strconv.Itoa(int(p.Port))
		protocol := strings.ToLower(string(p.Protocol))
		url := protocol + "://" + net.JoinHostPort(host, port)
		if i == 0 {
			env[name+"_SERVICE_PORT"] = port
			env[name+"_PORT"] = url
		}
		if p.Name != "" {
			env[name+"_SERVICE_PORT_"+variableName(p.Name)] = port
		}
		prefix := name + "_PORT_" + port + "_" + string(p.Protocol)
		env[prefix] = url
		env[prefix+"_PROTO"] = protocol
		env[prefix+"_PORT"] = port
		env[prefix+"_ADDR"] = host
	}
}

func variableName(s string) string { return strings.ToUpper(strings.ReplaceAll(s, "-", "_")) }
