package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/tallyman-dev/tallyman/nodes/trust"
)

// nodeOptions are what an agent is told by flags.
type nodeOptions struct {
	name       string
	ip         string
	zone       string
	region     string
	nodeLabels []string
	reserved   string
	capacity   string
	certsDir   string
	devices    []string
	pluginsDir string
	kubeletDir string
	// watchdog is the device that the keeper holds while pods are fenced.
	watchdog string
}

func (o *nodeOptions) addFlags(f *pflag.FlagSet) {
	f.StringVar(&o.name, "node-name", "", "name of this node; default: the host's")
	f.StringVar(&o.ip, "node-ip", "", "address of this node; default: the one the default route uses")
	f.StringVar(&o.reserved, "reserved", "", "resources kept from pods, e.g. cpu=500m,memory=1Gi")
	f.StringVar(&o.capacity, "capacity", "", "resources that the node claims to have, e.g. cpu=64,memory=256Gi")
	f.StringVar(&o.certsDir, "registry-config", "/etc/containerd/certs.d", "folder with a hosts.toml for each registry")
	f.StringArrayVar(&o.devices, "device", nil, "devices that pods may request, e.g. vendor.com/name=/dev/x,/dev/y; may be repeated")
	f.StringVar(&o.watchdog, "watchdog", "", "watchdog device to hold while pods are fenced, e.g. /dev/watchdog; empty: none")
	f.StringVar(&o.pluginsDir, "device-plugins", "/var/lib/kubelet/device-plugins", "folder where device plugins register; empty: none may")
	f.StringVar(&o.kubeletDir, "kubelet-dir", "/var/lib/kubelet", "folder that storage drivers share with the node, as with a kubelet; empty: none is used")
	f.StringVar(&o.zone, "zone", "", "zone of this node: its label "+corev1.LabelTopologyZone)
	f.StringVar(&o.region, "region", "", "region of this node: its label "+corev1.LabelTopologyRegion)
	f.StringArrayVar(&o.nodeLabels, "node-label", nil, "a label of this node, e.g. disk=ssd; may be repeated")
}

// check finds what is wrong with the flags, and fills in the node's name.
func (o *nodeOptions) check(command string) (err error) {
	if err := needsRoot(command); err != nil {
		return err
	}
	if _, err := o.labels(); err != nil {
		return err
	}
	if o.name == "" {
		if o.name, err = hostName(); err != nil {
			return fmt.Errorf("--node-name: %w", err)
		}
	}
	if err := trust.CheckName(o.name); err != nil {
		return usageError{fmt.Errorf("--node-name: %w", err)}
	}
	return nil
}

// hostName is the host's, as nodes are named.
func hostName() (string, error) {
	host, err := os.Hostname()
	return strings.ToLower(host), err
}

// standardLabels are those that Tallyman gives every node.
var standardLabels = []string{corev1.LabelHostname, corev1.LabelOSStable, corev1.LabelArchStable}

// labels are those that the flags give the node; nil for none.
func (o *nodeOptions) labels() (map[string]string, error) {
	list := slices.Clone(o.nodeLabels)
	if o.zone != "" {
		list = append(list, corev1.LabelTopologyZone+"="+o.zone)
	}
	if o.region != "" {
		list = append(list, corev1.LabelTopologyRegion+"="+o.region)
	}
	var labels map[string]string
	for _, text := range list {
		key, value, found := strings.Cut(text, "=")
		var problems []string
		switch {
		case !found:
			problems = []string{"want key=value"}
		case slices.Contains(standardLabels, key):
			problems = []string{"every node has that label by itself"}
		case strings.HasPrefix(key, corev1.LabelNamespaceNodeRestriction+"/"), strings.Contains(key, "."+corev1.LabelNamespaceNodeRestriction+"/"):
			problems = []string{"labels of " + corev1.LabelNamespaceNodeRestriction + " are not a node's to give itself: write them into its v1 Node in Git"}
		default:
			problems = append(validation.IsQualifiedName(key), validation.IsValidLabelValue(value)...)
		}
		if len(problems) > 0 {
			return nil, usageError{fmt.Errorf("--node-label, --zone, --region: %q: %w", text, errors.New(problems[0]))}
		}
		if labels == nil {
			labels = map[string]string{}
		}
		labels[key] = value
	}
	return labels, nil
}
