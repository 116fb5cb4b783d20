package admission

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
)

const defaultAccount = "default"

// accountKey names the ServiceAccount of a pod.
func accountKey(namespace string, spec *corev1.PodSpec) desired.Key {
	name := spec.ServiceAccountName
	if name == "" {
		name = defaultAccount
	}
	return desired.Key{Kind: "ServiceAccount", Namespace: namespace, Name: name}
}

func (r *Rules) account(namespace string, spec *corev1.PodSpec) *corev1.ServiceAccount {
	return r.accounts[accountKey(namespace, spec)]
}

// missingAccount reports whether a pod names an account that is not written.
// Every namespace has the account "default".
func (r *Rules) missingAccount(namespace string, spec *corev1.PodSpec) bool {
	key := accountKey(namespace, spec)
	return key.Name != defaultAccount && !r.known[key]
}

// useAccount gives a pod that names no imagePullSecrets those of its account.
func (c *completion) useAccount() {
	if c.rules.missingAccount(c.Object.Namespace, c.Spec) {
		name := c.Spec.ServiceAccountName
		c.refuse("missing-serviceaccount", "serviceAccountName",
			fmt.Sprintf("there is no ServiceAccount %q in namespace %s", name, c.Object.Namespace),
			"add the ServiceAccount, or leave serviceAccountName out to use default")
		return
	}
	if account := c.rules.account(c.Object.Namespace, c.Spec); account != nil && len(account.ImagePullSecrets) > 0 && len(c.Spec.ImagePullSecrets) == 0 {
		c.filled = append(c.filled, "imagePullSecrets")
		c.Spec.ImagePullSecrets = slices.Clone(account.ImagePullSecrets)
	}
}
