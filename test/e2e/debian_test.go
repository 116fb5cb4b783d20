//go:build e2e

package e2e_test

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/test/machine"
)

// nginxPackages hold nginx and the libraries that it loads.
var nginxPackages = []string{"nginx", "nginx-common", "libc6", "libcrypt1", "libpcre2-8-0", "libssl3", "zlib1g"}

const nginxManifests = `
apiVersion: v1
kind: ConfigMap
metadata: {name: site}
data:
  index.html: "PAGE\n"
  nginx.conf: |
    daemon off;
    error_log /dev/stderr;
    pid /run/nginx.pid;
    events {}
    http {
      include /etc/nginx/mime.types;
      access_log /dev/stdout;
      server { listen 8080; root /site; }
    }
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: site}
spec:
  replicas: 2
  selector: {matchLabels: {app: site}}
  strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}
  template:
    metadata: {labels: {app: site}, annotations: {version: "VERSION"}}
    spec:
      securityContext: {runAsUser: 1000, runAsGroup: 1000, fsGroup: 1000}
      volumes:
        - {name: site, configMap: {name: site}}
        - {name: run, emptyDir: {medium: Memory}}
        - {name: lib, emptyDir: {}}
        - {name: log, emptyDir: {}}
      containers:
        - name: nginx
          image: IMAGE
          command: [/usr/sbin/nginx, -c, /site/nginx.conf]
          readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
          lifecycle: {preStop: {sleep: {seconds: 1}}}
          volumeMounts:
            - {name: site, mountPath: /site}
            - {name: run, mountPath: /run}
            - {name: lib, mountPath: /var/lib/nginx}
            - {name: log, mountPath: /var/log/nginx}
---
apiVersion: v1
kind: Service
metadata: {name: site}
spec: {selector: {app: site}, ports: [{port: 80, targetPort: 8080}]}
`

// TestNginx serves a ConfigMap's page while its pods roll.
func TestNginx(t *testing.T) {
	m := machine.New(t)
	w := &world{Machine: m, t: t}
	ref := w.PushDebian("nginx:1", nginxPackages)
	m.Up()
	w.clone = m.Clone()
	write := func(page, version string) {
		w.clone.Write("site.yaml", strings.NewReplacer("IMAGE", ref, "PAGE", page, "VERSION", version).Replace(nginxManifests))
	}
	write("first", "1")
	w.clone.Apply("nginx")
	at := w.clusterIP("site")
	if page, err := get(at, "/index.html"); err != nil || page != "first\n" {
		t.Errorf("the page is %q, %v", page, err)
	}
	stop, failures := make(chan struct{}), make(chan error, 1)
	go func() { failures <- keepAsking(at, stop) }()
	write("second", "2")
	w.clone.Apply("another page")
	w.Eventually(patience, "the page follows", func() error {
		page, err := get(at, "/index.html")
		if err == nil && page != "second\n" {
			err = fmt.Errorf("it is %q", page)
		}
		return err
	})
	close(stop)
	if err := <-failures; err != nil {
		t.Errorf("a request during the rolling update: %v", err)
	}
}

// keepAsking asks until stop is closed and returns the first failure.
func keepAsking(at string, stop <-chan struct{}) error {
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		if _, err := get(at, "/index.html"); err != nil {
			return err
		}
	}
}

const redisManifests = `
apiVersion: v1
kind: Pod
metadata: {name: redis, labels: {app: redis}}
spec:
  volumes: [{name: data, emptyDir: {}}]
  containers:
    - name: redis
      image: IMAGE
      command: [/usr/bin/redis-server, --bind, 0.0.0.0, --protected-mode, "no", --dir, /data, --appendonly, "yes", --appendfsync, always]
      securityContext: {runAsUser: 1000}
      readinessProbe: {exec: {command: [/usr/bin/redis-cli, ping]}, periodSeconds: 1}
      volumeMounts: [{name: data, mountPath: /data}]
---
apiVersion: v1
kind: Service
metadata: {name: redis}
spec: {selector: {app: redis}, ports: [{port: 6379}]}
`

// TestRedis keeps its data across a restart of the container.
func TestRedis(t *testing.T) {
	m := machine.New(t)
	w := &world{Machine: m, t: t}
	ref := w.PushDebian("redis:7", machine.RedisPackages)
	m.Up()
	w.clone = m.Clone()
	w.clone.Write("redis.yaml", strings.ReplaceAll(redisManifests, "IMAGE", ref))
	w.clone.Apply("redis")
	at := w.clusterIP("redis")
	if answer, err := redis(at, "SET cargo 42"); err != nil || answer != "+OK" {
		t.Fatalf("SET: %q, %v", answer, err)
	}
	_, _ = redis(at, "SHUTDOWN") // ends the container without an answer
	w.Eventually(patience, "redis is back with its data", func() error {
		if _, err := redis(at, "GET cargo"); err != nil {
			return err
		}
		if n := w.pod("redis", ready).Status.Restarts(); n != 1 {
			return fmt.Errorf("%d restarts, want 1", n)
		}
		return nil
	})
	if answer, err := redis(at, "GET cargo"); err != nil || answer != "42" {
		t.Errorf("after the restart, GET: %q, %v", answer, err)
	}
}

// redis sends one command in line and returns the last line of its answer.
func redis(at, command string) (string, error) {
	connection, err := net.DialTimeout("tcp", at, 5*time.Second)
	if err != nil {
		return "", err
	}
	defer connection.Close()
	connection.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := fmt.Fprintf(connection, "%s\r\n", command); err != nil {
		return "", err
	}
	lines := bufio.NewReader(connection)
	line, err := lines.ReadString('\n')
	if err == nil && strings.HasPrefix(line, "$") {
		line, err = lines.ReadString('\n')
	}
	return strings.TrimSpace(line), err
}
