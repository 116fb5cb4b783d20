//go:build e2e

package chaos

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/test/machine"
)

// postgresPackages hold PostgreSQL and the libraries that it loads.
var postgresPackages = []string{
	"postgresql-15", "postgresql-common", "dash", "coreutils", "tzdata", "libc6", "libgcc-s1", "libgssapi-krb5-2", "libkrb5-3", "libk5crypto3",
	"libkrb5support0", "libcom-err2", "libkeyutils1", "libicu72", "libldap-2.5-0", "libsasl2-2", "liblz4-1", "libpam0g", "libaudit1",
	"libcap-ng0", "libpq5", "libselinux1", "libpcre2-8-0", "libssl3", "libstdc++6", "libsystemd0", "liblzma5", "libcap2", "libgcrypt20",
	"libgpg-error0", "libuuid1", "libxml2", "libxslt1.1", "libzstd1", "zlib1g", "libacl1", "libattr1", "libgmp10",
	"libgnutls30", "libp11-kit0", "libidn2-0", "libunistring2", "libtasn1-6", "libnettle8", "libhogweed6", "libffi8",
}

const dataManifests = `
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: directory, annotations: {storageclass.kubernetes.io/is-default-class: "true"}}
provisioner: tallyman.dev/local
volumeBindingMode: WaitForFirstConsumer
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: enforced}
provisioner: tallyman.dev/local
volumeBindingMode: WaitForFirstConsumer
parameters: {enforce: "true"}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: users}
data:
  passwd: "postgres:x:1000:1000::/data:/bin/sh\n"
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: postgres}
spec:
  serviceName: postgres
  selector: {matchLabels: {app: postgres}}
  template:
    metadata: {labels: {app: postgres}, annotations: {version: "REVISION"}}
    spec:
      os: {name: linux}
      terminationGracePeriodSeconds: 20
      securityContext: {runAsUser: 1000, runAsGroup: 1000, fsGroup: 1000, fsGroupChangePolicy: OnRootMismatch}
      volumes: [{name: users, configMap: {name: users}}, {name: tmp, emptyDir: {medium: Memory}}]
      containers:
        - name: postgres
          image: POSTGRES
          command: [/bin/sh, -ec]
          args:
            - |
              bin=/usr/lib/postgresql/15/bin
              if [ ! -s /data/pg/PG_VERSION ]; then
                rm -rf /data/pg
                $bin/initdb -D /data/pg -U postgres -A trust -E UTF8 --locale=C
                echo "host all all all trust" >>/data/pg/pg_hba.conf
              fi
              rm -f /data/pg/postmaster.pid
              exec $bin/postgres -D /data/pg -c listen_addresses='*' -c unix_socket_directories=/tmp -c jit=off
          lifecycle: {stopSignal: SIGINT}
          readinessProbe: {tcpSocket: {port: 5432}, periodSeconds: 1}
          volumeMounts:
            - {name: data, mountPath: /data}
            - {name: tmp, mountPath: /tmp}
            - {name: users, mountPath: /etc/passwd, subPath: passwd}
  volumeClaimTemplates:
    - metadata: {name: data}
      spec: {accessModes: [ReadWriteOnce], storageClassName: enforced, resources: {requests: {storage: 256Mi}}}
---
apiVersion: v1
kind: Service
metadata: {name: postgres}
spec: {selector: {app: postgres}, ports: [{port: 5432}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: redis}
spec:
  serviceName: redis
  selector: {matchLabels: {app: redis}}
  template:
    metadata: {labels: {app: redis}, annotations: {version: "REVISION"}}
    spec:
      securityContext: {runAsUser: 1000, fsGroup: 1000}
      containers:
        - name: redis
          image: REDIS
          command: [/usr/bin/redis-server, --bind, 0.0.0.0, --protected-mode, "no", --dir, /data/db, --appendonly, "yes", --appendfsync, always]
          readinessProbe: {exec: {command: [/usr/bin/redis-cli, ping]}, periodSeconds: 1}
          volumeMounts: [{name: data, mountPath: /data/db, subPath: db}]
  volumeClaimTemplates:
    - metadata: {name: data}
      spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 64Mi}}}
---
apiVersion: v1
kind: Service
metadata: {name: redis}
spec: {selector: {app: redis}, ports: [{port: 6379}]}
`

// TestDataSurvives has PostgreSQL and redis write what they acknowledge to
// claims, while everything is killed, rolled, and rebooted.
func TestDataSurvives(t *testing.T) {
	c := newCluster(t)
	deploy := func(version string) {
		t.Helper()
		c.clone.Write("data.yaml", strings.NewReplacer(
			"POSTGRES", c.images[2], "REDIS", c.images[3], "REVISION", version,
		).Replace(dataManifests))
		c.clone.Apply("data " + version)
	}
	c.images = append(c.images, c.PushDebian("postgres:15", postgresPackages), c.PushDebian("redis:7", machine.RedisPackages))
	deploy("1")
	d := &data{cluster: c}
	d.postgres, d.redis = d.at("postgres"), d.at("redis")
	d.query(`CREATE TABLE cargo (n int primary key)`)
	d.add(20)
	c.kill(true, true, true, func() { d.add(5) }) // the programs run on
	d.check("everything of ours was killed")
	d.killPrograms()
	d.check("the programs themselves were killed")
	deploy("2")
	d.check("a rollout")
	d.add(5)
	c.reboot()
	c.Up()
	d.check("a reboot")
}

// data counts what both programs have acknowledged.
type data struct {
	*cluster
	// postgres and redis are the addresses of the services.
	postgres, redis string
	acknowledged    int
}

// query has PostgreSQL do something now.
func (d *data) query(statement string) {
	d.t.Helper()
	if _, err := postgres(d.postgres, statement); err != nil {
		d.t.Fatalf("%s: %v", statement, err)
	}
}

// killPrograms kills the databases without a word.
func (d *data) killPrograms() {
	d.t.Helper()
	out, err := exec.Command("sh", "-c", "for p in /proc/[0-9]*; do case $(readlink $p/exe) in */postgres|*/redis-check-rdb|*/redis-server) kill -9 ${p#/proc/}; echo killed;; esac; done; true").Output()
	if err != nil || !bytes.Contains(out, []byte("killed\nkilled")) {
		d.t.Fatalf("kill the programs: %s, %v", out, err)
	}
}

func (d *data) at(service string) string {
	d.t.Helper()
	o, err := d.Overview()
	if err != nil {
		d.t.Fatal(err)
	}
	for _, s := range o.Services {
		if s.Key.Name == service {
			return fmt.Sprintf("%s:%d", s.ClusterIPs[0], s.Ports[0].Port)
		}
	}
	d.t.Fatalf("no service %s", service)
	return ""
}

// add has both programs take n more entries.
func (d *data) add(n int) {
	d.t.Helper()
	for range n {
		next := d.acknowledged + 1
		d.query(fmt.Sprintf(`INSERT INTO cargo VALUES (%d)`, next))
		if answer, err := redisCommand(d.redis, fmt.Sprintf("SADD cargo %d", next)); err != nil || answer != ":1" {
			d.t.Fatalf("redis answers %q, %v", answer, err)
		}
		d.acknowledged = next
	}
}

// check waits until both serve again, and compares what they hold.
func (d *data) check(after string) {
	d.t.Helper()
	want := strconv.Itoa(d.acknowledged)
	d.Eventually(2*patience, "the data is there after "+after, func() error {
		rows, err := postgres(d.postgres, `SELECT count(*) FROM cargo`)
		if err != nil {
			return err
		}
		members, err := redisCommand(d.redis, "SCARD cargo")
		if err != nil {
			return err
		}
		if rows != want || members != ":"+want {
			return fmt.Errorf("PostgreSQL has %s, redis %s, acknowledged were %s", rows, members, want)
		}
		return nil
	})
}

var errClosed = errors.New("no answer")

// redisCommand sends one command in line and returns its answer.
func redisCommand(at, command string) (string, error) {
	connection, err := net.DialTimeout("tcp", at, 5*time.Second)
	if err != nil {
		return "", err
	}
	defer connection.Close()
	connection.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := fmt.Fprintf(connection, "%s\r\n", command); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(connection).ReadString('\n')
	return strings.TrimSpace(line), err
}

// postgres runs one statement over the simple query protocol and returns the
// first column of its last row.
func postgres(at, statement string) (string, error) {
	connection, err := net.DialTimeout("tcp", at, 5*time.Second)
	if err != nil {
		return "", err
	}
	defer connection.Close()
	connection.SetDeadline(time.Now().Add(10 * time.Second))
	hello := binary.BigEndian.AppendUint32(nil, 3<<16) // protocol 3.0
	hello = append(hello, "user\x00postgres\x00database\x00postgres\x00\x00"...)
	if _, err := connection.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(hello)+4)), hello...)); err != nil {
		return "", err
	}
	r := bufio.NewReader(connection)
	if _, err := answer(r); err != nil {
		return "", err
	}
	query := append([]byte{'Q'}, binary.BigEndian.AppendUint32(nil, uint32(len(statement)+5))...)
	if _, err := connection.Write(append(append(query, statement...), 0)); err != nil {
		return "", err
	}
	return answer(r)
}

// answer reads messages until PostgreSQL waits for the next statement.
func answer(r io.Reader) (last string, err error) {
	for {
		head := make([]byte, 5)
		if _, err := io.ReadFull(r, head); err != nil {
			return "", errors.Join(errClosed, err)
		}
		body := make([]byte, binary.BigEndian.Uint32(head[1:])-4)
		if _, err := io.ReadFull(r, body); err != nil {
			return "", errors.Join(errClosed, err)
		}
		switch head[0] {
		case 'Z':
			return last, err
		case 'E':
			err = errors.New(string(bytes.ReplaceAll(body, []byte{0}, []byte{' '})))
		case 'D':
			if n := int32(binary.BigEndian.Uint32(body[2:])); n >= 0 {
				last = string(body[6 : 6+n])
			}
		}
		if head[0] == 'E' && bytes.Contains(body, []byte("FATAL")) {
			return "", err
		}
	}
}
