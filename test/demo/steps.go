package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
)

// checkAddresses says early who is in the way.
func (d *demo) checkAddresses(context.Context) error {
	for _, address := range []string{registryAddress, pageAddress} {
		listener, err := net.Listen("tcp", address)
		if err != nil {
			return fmt.Errorf("%w: another program uses it; `ss -ltnp` shows which", err)
		}
		listener.Close()
	}
	if err := os.MkdirAll(d.dir, 0o755); err != nil {
		return err
	}
	// The clone has Go sources; they are no part of the module around it.
	return os.WriteFile(d.path("go.mod"), []byte("module demo\n"), 0o644)
}

func (d *demo) startTally(ctx context.Context) error {
	args := append([]string{d.tally}, d.tallyArgs("up", "--containerd", d.socket("containerd.sock"), "--http", pageAddress, "--device-plugins", "", "--kubelet-dir", "")...)
	if err := d.spawn("tally", args...); err != nil {
		return err
	}
	return poll(30*time.Second, func() error {
		answer, err := http.Get("http://" + pageAddress + "/readyz")
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			text, _ := io.ReadAll(io.LimitReader(answer.Body, 1<<10))
			return fmt.Errorf("not ready: %s", strings.TrimSpace(string(text)))
		}
		return ctx.Err()
	})
}

// push makes a clone as a user would have it, and pushes over HTTP with the
// credential helper.
func (d *demo) push(ctx context.Context) error {
	clone := d.path("cluster")
	if err := os.CopyFS(clone, os.DirFS(filepath.Join(d.source, "examples-repo"))); err != nil {
		return err
	}
	helper := fmt.Sprintf("!'%s' git-credential --run-dir '%s'", d.tally, d.socket("tally"))
	for _, args := range [][]string{
		{"init", "--quiet", "--initial-branch", "main"},
		{"config", "user.name", "Demo"},
		{"config", "user.email", "demo@localhost"},
		{"config", "credential.http://" + pageAddress + ".helper", helper},
		{"remote", "add", "origin", "http://" + pageAddress + "/repo.git"},
		{"add", "."},
		{"commit", "--quiet", "--message", "examples-repo: three services in two namespaces"},
		{"push", "--set-upstream", "origin", "main"},
	} {
		if err := d.command(ctx, clone, "git", args...); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) wait(ctx context.Context) error {
	head, err := exec.CommandContext(ctx, "git", "-C", d.path("cluster"), "rev-parse", "HEAD").Output()
	if err != nil {
		return fmt.Errorf("read the pushed commit: %w", err)
	}
	return d.command(ctx, d.dir, d.tally, "wait", "--run-dir", d.socket("tally"), "--commit", strings.TrimSpace(string(head)), "--timeout", "2m")
}

// fetchAll asks every service through its cluster address and its node port.
func (d *demo) fetchAll(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, d.tally, "status", "--run-dir", d.socket("tally"), "-o", "json").Output()
	if err != nil {
		return fmt.Errorf("tally status: %w", err)
	}
	var overview nodes.Overview
	if err := json.Unmarshal(out, &overview); err != nil {
		return err
	}
	fetched := 0
	for _, service := range overview.Services {
		for _, port := range service.Ports {
			if len(service.ClusterIPs) == 0 || port.NodePort == 0 {
				continue
			}
			for _, address := range []string{
				fmt.Sprintf("http://%s:%d/", service.ClusterIPs[0], port.Port),
				fmt.Sprintf("http://127.0.0.1:%d/", port.NodePort),
			} {
				if err := fetch(ctx, service.Key.Namespace+"/"+service.Key.Name, address); err != nil {
					return err
				}
				fetched++
			}
		}
	}
	if fetched == 0 {
		return errors.New("the cluster has no service to fetch")
	}
	return nil
}

func fetch(ctx context.Context, name, address string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, 4<<10))
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s at %s: %s: %s", name, address, answer.Status, text)
	}
	first, _, _ := strings.Cut(string(text), "\n")
	fmt.Printf("   %-20s %-28s %s\n", name, address, first)
	return nil
}

func (d *demo) explain() error {
	token, err := os.ReadFile(filepath.Join(d.socket("tally"), "token"))
	if err != nil {
		return err
	}
	fmt.Printf(`
The cluster runs. Look at it:

    http://%[1]s/?token=%[2]s
    %[4]s status --run-dir %[5]s

Change something and watch it roll out:

    cd %[3]s
    sed -i 's/count: 3/count: 5/' overlays/production/kustomization.yaml
    git commit -am 'production: five greeters' && git push

Roll back:

    git revert --no-edit HEAD && git push

examples-repo/README.md has more to try, broken things too. End it, leaving nothing behind:

    make demo-stop
`, pageAddress, strings.TrimSpace(string(token)), d.path("cluster"), d.tally, d.socket("tally"))
	return nil
}
