package spec

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
	"github.com/tallyman-dev/tallyman/proxy"
)

func testContext(s corev1.PodSpec) *Context {
	configs := map[desired.Key]*nodes.Config{}
	add := func(kind, name string, data map[string]string) {
		c := &nodes.Config{Key: desired.Key{Kind: kind, Namespace: "shop", Name: name}, Data: map[string][]byte{}}
		for k, v := range data {
			c.Data[k] = []byte(v)
		}
		configs[c.Key] = c
	}
	add("ConfigMap", "settings", map[string]string{"color": "blue", "size": "9"})
	add("Secret", "login", map[string]string{"user": "ann"})
	add("Secret", "registry", map[string]string{".dockerconfigjson": `{"auths":{"https://index.docker.io/v1/":{"auth":"YW5uOnB3"},"reg.example:5000/team":{"username":"bob","password":"x"}}}`})
	return &Context{
		Pod: &nodes.Pod{UID: "u1", Namespace: "shop", Name: "web-1", Template: &nodes.Template{
			Labels: map[string]string{"app": "web", "tier": `a"b`}, Annotations: map[string]string{"note": "n"}, Spec: s,
		}},
		IP: netip.MustParseAddr("10.244.0.7"), HostIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Node: "n1",
		Allocatable: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("8Gi")},
		Config:      func(k desired.Key) *nodes.Config { return configs[k] },
		Services: &proxy.Table{Services: []*proxy.Service{
			{Namespace: "other", Name: "x", ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.9")}, Ports: []proxy.Port{{Protocol: proxy.TCP, Port: 1}}},
			{Namespace: "shop", Name: "my-db", ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.5")}, Ports: []proxy.Port{{Name: "sql", Protocol: proxy.TCP, Port: 5432}}},
			{Namespace: "shop", Name: "headless", Headless: true, Ports: []proxy.Port{{Protocol: proxy.TCP, Port: 1}}},
		}},
	}
}

func field(path string) *corev1.EnvVarSource {
	return &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}
}

func TestEnvironmentTakesEveryKindOfSource(t *testing.T) {
	container := corev1.Container{
		Name: "web",
		Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse("1500m"),
		}},
		EnvFrom: []corev1.EnvFromSource{{Prefix: "CFG_", ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}}}},
		Env: []corev1.EnvVar{
			{Name: "PLAIN", Value: "a$(CFG_color)-$(UNKNOWN)-$$(CFG_color)"},
			{Name: "NAME", ValueFrom: field("metadata.name")},
			{Name: "APP", ValueFrom: field("metadata.labels['app']")},
			{Name: "IP", ValueFrom: field("status.podIP")},
			{Name: "HOST", ValueFrom: field("status.hostIP")},
			{Name: "USER", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "login"}, Key: "user"}}},
			{Name: "ABSENT", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "none"}, Key: "k", Optional: new(true)}}},
			{Name: "CPU", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.cpu"}}},
			{Name: "MILLI", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.cpu", Divisor: resource.MustParse("1m")}}},
			{Name: "MEM", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.memory", Divisor: resource.MustParse("1Mi")}}},
			{Name: "CFG_size", Value: "10"},
		},
	}
	c := testContext(corev1.PodSpec{Containers: []corev1.Container{container}, EnableServiceLinks: new(false)})
	got, err := c.Environment(&container)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"CFG_color=blue", "CFG_size=10", "PLAIN=ablue-$(UNKNOWN)-$(CFG_color)", "NAME=web-1", "APP=web",
		"IP=10.244.0.7", "HOST=192.0.2.1", "USER=ann", "CPU=2", "MILLI=1500", "MEM=8192",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestEnvironmentSaysWhatIsMissing(t *testing.T) {
	for _, c := range []struct {
		env  corev1.EnvVar
		want string
	}{
		{corev1.EnvVar{Name: "A", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "none"}, Key: "k"}}}, `configmap "none" not found`},
		{corev1.EnvVar{Name: "A", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "login"}, Key: "k"}}}, `couldn't find key k in Secret shop/login`},
		{corev1.EnvVar{Name: "A", ValueFrom: field("status.phase")}, `no such field`},
	} {
		container := corev1.Container{Name: "web", Env: []corev1.EnvVar{c.env}}
		_, err := testContext(corev1.PodSpec{}).Environment(&container)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %q", err, c.want)
		}
	}
}

func TestEnvironmentLeavesBinaryContentOut(t *testing.T) {
	from := func(kind string) corev1.EnvFromSource {
		name := corev1.LocalObjectReference{Name: "bytes"}
		if kind == "Secret" {
			return corev1.EnvFromSource{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: name}}
		}
		return corev1.EnvFromSource{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: name}}
	}
	for _, kind := range []string{"ConfigMap", "Secret"} {
		c := testContext(corev1.PodSpec{EnableServiceLinks: new(false)})
		c.Config = func(desired.Key) *nodes.Config {
			return &nodes.Config{Data: map[string][]byte{"key": []byte("sesame\x00"), "text": []byte("a")}}
		}
		env, err := c.Environment(&corev1.Container{Name: "web", EnvFrom: []corev1.EnvFromSource{from(kind)}})
		if kind == "ConfigMap" {
			if diff := cmp.Diff([]string{"text=a"}, env); diff != "" || err != nil {
				t.Error(diff, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), "key: its value holds a NUL byte") || strings.Contains(err.Error(), "sesame") {
			t.Errorf("of a Secret: %v, want an error that does not quote it", err)
		}
	}
}

func TestEnvironmentLeavesBinaryDataOut(t *testing.T) {
	name := corev1.LocalObjectReference{Name: "both"}
	c := testContext(corev1.PodSpec{EnableServiceLinks: new(false)})
	c.Config = func(desired.Key) *nodes.Config {
		return &nodes.Config{Data: map[string][]byte{"file": []byte("plain text"), "text": []byte("a")}, Binary: []string{"file"}}
	}
	env, err := c.Environment(&corev1.Container{Name: "web", EnvFrom: []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: name}}}})
	if diff := cmp.Diff([]string{"text=a"}, env); diff != "" || err != nil {
		t.Error(diff, err)
	}
	_, err = c.Environment(&corev1.Container{Name: "web", Env: []corev1.EnvVar{{Name: "A", ValueFrom: &corev1.EnvVarSource{
		ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: name, Key: "file"},
	}}}})
	if err == nil || !strings.Contains(err.Error(), "couldn't find key file in ConfigMap") {
		t.Errorf("a variable from binaryData: %v", err)
	}
}

func TestServiceLinksNameTheNamespacesServices(t *testing.T) {
	c := testContext(corev1.PodSpec{})
	want := map[string]string{
		"MY_DB_SERVICE_HOST": "10.96.0.5", "MY_DB_SERVICE_PORT": "5432", "MY_DB_SERVICE_PORT_SQL": "5432",
		"MY_DB_PORT": "tcp://10.96.0.5:5432", "MY_DB_PORT_5432_TCP": "tcp://10.96.0.5:5432",
		"MY_DB_PORT_5432_TCP_PROTO": "tcp", "MY_DB_PORT_5432_TCP_PORT": "5432", "MY_DB_PORT_5432_TCP_ADDR": "10.96.0.5",
	}
	if diff := cmp.Diff(want, ServiceLinks(c.Services, "shop")); diff != "" {
		t.Error(diff)
	}
}

func TestProcessMergesTheImage(t *testing.T) {
	image := runtime.ImageConfig{Entrypoint: []string{"/entry"}, Cmd: []string{"serve"}, Env: []string{"PATH=/bin", "A=image"}, WorkingDir: "/srv"}
	for _, c := range []struct {
		name      string
		container corev1.Container
		want      []string
	}{
		{"image alone", corev1.Container{}, []string{"/entry", "serve"}},
		{"args replace cmd", corev1.Container{Args: []string{"$(A)"}}, []string{"/entry", "manifest"}},
		{"command drops cmd", corev1.Container{Command: []string{"sh"}}, []string{"sh"}},
		{"both", corev1.Container{Command: []string{"sh"}, Args: []string{"-c"}}, []string{"sh", "-c"}},
	} {
		args, env, dir, err := Process(&c.container, []string{"A=manifest"}, image, "h")
		if err != nil || !slices.Equal(args, c.want) || dir != "/srv" {
			t.Errorf("%s: args %q dir %q err %v, want %q", c.name, args, dir, err, c.want)
		}
		if want := []string{"PATH=/bin", "HOSTNAME=h", "A=manifest"}; !slices.Equal(env, want) {
			t.Errorf("%s: env %q, want %q", c.name, env, want)
		}
	}
	if _, _, _, err := Process(&corev1.Container{}, nil, runtime.ImageConfig{}, "h"); err == nil {
		t.Error("a container without any command was accepted")
	}
}

func resources(request, limit string) corev1.ResourceRequirements {
	list := func(s string) corev1.ResourceList {
		cpu, memory, found := strings.Cut(s, "/")
		if !found {
			return nil
		}
		return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
	}
	return corev1.ResourceRequirements{Requests: list(request), Limits: list(limit)}
}

func TestResourcesFollowKubernetes(t *testing.T) {
	for _, c := range []struct {
		name, request, limit string
		limits               runtime.Resources
		qos                  corev1.PodQOSClass
		score                int
	}{
		{"nothing", "", "", runtime.Resources{CPUShares: 2}, corev1.PodQOSBestEffort, 1000},
		{"limit alone", "", "500m/1Gi", runtime.Resources{CPUShares: 512, CPUQuota: 50000, CPUPeriod: 100000, Memory: 1 << 30}, corev1.PodQOSGuaranteed, -997},
		{"equal", "2/1Gi", "2/1Gi", runtime.Resources{CPUShares: 2048, CPUQuota: 200000, CPUPeriod: 100000, Memory: 1 << 30}, corev1.PodQOSGuaranteed, -997},
		{"burstable", "1m/2Gi", "5m/4Gi", runtime.Resources{CPUShares: 2, CPUQuota: 1000, CPUPeriod: 100000, Memory: 4 << 30}, corev1.PodQOSBurstable, 750},
		{"request alone", "100m/64Mi", "", runtime.Resources{CPUShares: 102}, corev1.PodQOSBurstable, 993},
	} {
		s := corev1.PodSpec{Containers: []corev1.Container{{Name: "a", Resources: resources(c.request, c.limit)}}}
		container := &s.Containers[0]
		if diff := cmp.Diff(c.limits, Limits(&s, container)); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
		if got := nodes.QoS(&s); got != c.qos {
			t.Errorf("%s: class %s, want %s", c.name, got, c.qos)
		}
		around := "/tallyman/podx"
		if c.qos == corev1.PodQOSBestEffort {
			around = "/tallyman/besteffort/podx"
		}
		if got := CgroupParent(&nodes.Pod{UID: "x", Template: &nodes.Template{Spec: s}}); got != around {
			t.Errorf("%s: in group %s, want %s", c.name, got, around)
		}
		if got := OOMScore(&s, container, 8<<30); got != c.score {
			t.Errorf("%s: oom score %d, want %d", c.name, got, c.score)
		}
		if diff := cmp.Diff(c.limits, PodLimits(&s)); diff != "" {
			t.Errorf("%s: pod: %s", c.name, diff)
		}
	}
}

func TestPodHasALimitOnlyWhenEveryContainerHasOne(t *testing.T) {
	s := corev1.PodSpec{Containers: []corev1.Container{
		{Name: "a", Resources: resources("1/1Gi", "1/1Gi")}, {Name: "b", Resources: resources("1/1Gi", "")},
	}}
	if diff := cmp.Diff(runtime.Resources{CPUShares: 2048}, PodLimits(&s)); diff != "" {
		t.Error(diff)
	}
}

func TestWhoRefusesRootWhereItMust(t *testing.T) {
	nonRoot := &corev1.SecurityContext{RunAsNonRoot: new(true)}
	for _, c := range []struct {
		name, image string
		security    *corev1.SecurityContext
		user, err   string
	}{
		{"image user", "app:web", nil, "app:web", ""},
		{"root image", "", nonRoot, "", "image will run as root"},
		{"named user", "app", nonRoot, "", "non-numeric user (app)"},
		{"numeric user", "7", nonRoot, "7", ""},
		{"manifest says root", "7", &corev1.SecurityContext{RunAsNonRoot: new(true), RunAsUser: new(int64(0))}, "", "breaks non-root policy"},
		{"manifest wins", "0", &corev1.SecurityContext{RunAsNonRoot: new(true), RunAsUser: new(int64(5))}, "5", ""},
	} {
		id, err := Who(&corev1.PodSpec{}, &corev1.Container{SecurityContext: c.security}, c.image)
		switch {
		case c.err == "" && (err != nil || id.User != c.user):
			t.Errorf("%s: user %q, err %v", c.name, id.User, err)
		case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
			t.Errorf("%s: err %v, want %q", c.name, err, c.err)
		}
	}
}

func TestResolverFollowsPolicy(t *testing.T) {
	machine := ParseResolver([]byte("# x\nnameserver 192.0.2.53\nsearch corp.example\noptions timeout:1\n"))
	server := netip.MustParseAddr("10.244.0.1")
	own := &corev1.PodDNSConfig{Nameservers: []string{"9.9.9.9"}, Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: new("2")}}}
	for _, c := range []struct {
		name string
		spec corev1.PodSpec
		want string
	}{
		{"cluster first", corev1.PodSpec{DNSPolicy: corev1.DNSClusterFirst}, "nameserver 10.244.0.1\nsearch shop.svc.cluster.local svc.cluster.local cluster.local corp.example\noptions ndots:5\n"},
		{"host network", corev1.PodSpec{DNSPolicy: corev1.DNSClusterFirst, HostNetwork: true}, "nameserver 192.0.2.53\nsearch corp.example\noptions timeout:1\n"},
		{"default", corev1.PodSpec{DNSPolicy: corev1.DNSDefault}, "nameserver 192.0.2.53\nsearch corp.example\noptions timeout:1\n"},
		{"none", corev1.PodSpec{DNSPolicy: corev1.DNSNone, DNSConfig: own}, "nameserver 9.9.9.9\noptions ndots:2\n"},
		{"with own", corev1.PodSpec{DNSPolicy: corev1.DNSClusterFirstWithHostNet, HostNetwork: true, DNSConfig: own}, "nameserver 10.244.0.1\nnameserver 9.9.9.9\nsearch shop.svc.cluster.local svc.cluster.local cluster.local corp.example\noptions ndots:2\n"},
	} {
		pod := testContext(c.spec).Pod
		if diff := cmp.Diff(c.want, string(ResolverFor(pod, "cluster.local", server, machine).Bytes())); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
}

func TestHostsNamesThePodAndItsAliases(t *testing.T) {
	c := testContext(corev1.PodSpec{Hostname: "front", Subdomain: "web", HostAliases: []corev1.HostAlias{{IP: "1.2.3.4", Hostnames: []string{"a", "b"}}}})
	got := string(Hosts(c.Pod, c.IP, "cluster.local", nil))
	for _, line := range []string{"10.244.0.7\tfront.web.shop.svc.cluster.local\tfront\n", "1.2.3.4\ta\tb\n", "127.0.0.1\tlocalhost\n"} {
		if !strings.Contains(got, line) {
			t.Errorf("no line %q in\n%s", line, got)
		}
	}
}

// TestWhatIsThePodsOwn goes before what its template says.
func TestWhatIsThePodsOwn(t *testing.T) {
	c := testContext(corev1.PodSpec{Hostname: "front", Subdomain: "web"})
	c.Pod.Hostname, c.Pod.Subdomain, c.Pod.Labels = "db-0", "db", map[string]string{"index": "0", "tier": "back"}
	if host, domain := Hostname(c.Pod), Domain(c.Pod, "cluster.local"); host != "db-0" || domain != "db.shop.svc.cluster.local" {
		t.Errorf("hostname %q in %q", host, domain)
	}
	for path, want := range map[string]string{
		"metadata.labels['index']": "0", "metadata.labels['tier']": "back", "metadata.labels['app']": "web",
		"metadata.labels": "app=\"web\"\nindex=\"0\"\ntier=\"back\"",
	} {
		if got, err := c.Field(&corev1.ObjectFieldSelector{FieldPath: path}); err != nil || strings.TrimSpace(got) != want {
			t.Errorf("%s is %q: %v", path, got, err)
		}
	}
}

func TestPullAuthsPutTheMostSpecificFirst(t *testing.T) {
	c := testContext(corev1.PodSpec{ImagePullSecrets: []corev1.LocalObjectReference{{Name: "registry"}, {Name: "gone"}}})
	want := []runtime.Auth{{Registry: "docker.io", Username: "ann", Password: "pw"}, {Registry: "reg.example:5000/team", Username: "bob", Password: "x"}}
	if diff := cmp.Diff(want, c.PullAuths()); diff != "" {
		t.Error(diff)
	}
}

func TestDownwardMapsAreSortedAndQuoted(t *testing.T) {
	got, err := testContext(corev1.PodSpec{}).Field(&corev1.ObjectFieldSelector{FieldPath: "metadata.labels"})
	if want := "app=\"web\"\ntier=\"a\\\"b\""; err != nil || got != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
}

func TestSupplementalGroupsPolicy(t *testing.T) {
	for policy, strict := range map[corev1.SupplementalGroupsPolicy]bool{corev1.SupplementalGroupsPolicyStrict: true, corev1.SupplementalGroupsPolicyMerge: false} {
		id, err := Who(&corev1.PodSpec{SecurityContext: &corev1.PodSecurityContext{SupplementalGroupsPolicy: &policy}}, &corev1.Container{}, "app")
		if err != nil || id.Strict != strict {
			t.Errorf("%s: %+v, %v", policy, id, err)
		}
	}
}

func TestAppArmorProfiles(t *testing.T) {
	for want, p := range map[string]*corev1.AppArmorProfile{
		"":                      {Type: corev1.AppArmorProfileTypeUnconfined},
		runtime.AppArmorDefault: {Type: corev1.AppArmorProfileTypeRuntimeDefault},
		"mine":                  {Type: corev1.AppArmorProfileTypeLocalhost, LocalhostProfile: new("mine")},
	} {
		pod := &corev1.PodSpec{SecurityContext: &corev1.PodSecurityContext{AppArmorProfile: p}}
		if got := Security(pod, &corev1.Container{}, "/").AppArmor; got != want {
			t.Errorf("%s: %q, want %q", p.Type, got, want)
		}
	}
}

func TestLocalhostSeccompStaysInItsFolder(t *testing.T) {
	p := &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeLocalhost, LocalhostProfile: new("../../etc/passwd")}
	got := Security(&corev1.PodSpec{SecurityContext: &corev1.PodSecurityContext{SeccompProfile: p}}, &corev1.Container{}, "/data/seccomp")
	if got.Seccomp != "/data/seccomp/etc/passwd" {
		t.Errorf("profile %s", got.Seccomp)
	}
}
