package manifest

import (
	"reflect"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tallyman-dev/tallyman/desired"
)

// typeRule decides every field of one API type. A field is named in exactly one
// place; a test walks the Go types and fails for one that is not.
type typeRule struct {
	of reflect.Type
	// works names the fields that do what Kubernetes documents, by spaces.
	works string
	// other are the rest.
	other []fieldRule
}

// fieldRule decides fields that do not simply work.
type fieldRule struct {
	// names by spaces.
	names  string
	status Status
	reason string
	// harmless are values, as JSON and by spaces, that ask for nothing beyond
	// what happens anyway: Kubernetes' default, mostly. They are not reported.
	harmless string
}

// fieldRules is the table of fields of the kinds that work, or are to work.
func fieldRules() []typeRule {
	var all []typeRule
	for _, part := range [][]typeRule{
		metaFields(), workloadFields(), setFields(), jobFields(), podFields(), schedulingFields(), containerFields(), securityFields(), volumeFields(),
		storageFields(), serviceFields(), scalingFields(), limitFields(), nodeFields(), clusterFields(),
	} {
		all = append(all, part...)
	}
	return all
}

func on[T any](works string, other ...fieldRule) typeRule {
	return typeRule{of: reflect.TypeFor[T](), works: works, other: other}
}

func noEffect(names, reason string) fieldRule {
	return fieldRule{names: names, status: NoEffect, reason: reason}
}

func notEnforced(names, reason string) fieldRule {
	return fieldRule{names: names, status: NotEnforced, reason: reason}
}

func unsupported(names, reason string) fieldRule {
	return fieldRule{names: names, status: Unsupported, reason: reason}
}

func (f fieldRule) unless(values string) fieldRule {
	f.harmless = values
	return f
}

// statusField is that of all kinds.
func statusField() fieldRule { return noEffect("status", "it is observed, not written") }

func metaFields() []typeRule {
	return []typeRule{
		on[metav1.ObjectMeta](
			"name namespace labels annotations",
			noEffect("generateName", "objects have the name that is written; a Job that has none is named after its content"),
			noEffect("selfLink uid resourceVersion generation creationTimestamp deletionTimestamp deletionGracePeriodSeconds managedFields", "an API server writes it, people do not"),
			noEffect("ownerReferences", "an object lives as long as its manifest is in the repository"),
			noEffect("finalizers", "no controller waits for deletions"),
		),
		on[metav1.LabelSelector]("matchLabels matchExpressions"),
		on[metav1.LabelSelectorRequirement]("key operator values"),
		on[corev1.LocalObjectReference]("name"),
		on[corev1.ObjectReference]("kind namespace name uid apiVersion resourceVersion fieldPath"),
	}
}

func workloadFields() []typeRule {
	return []typeRule{
		on[corev1.Namespace]("metadata", noEffect("spec", "no controller waits for finalizers").unless(`{"finalizers":["kubernetes"]}`), statusField()),
		on[corev1.ConfigMap]("metadata immutable data binaryData"),
		on[corev1.Secret]("metadata immutable data stringData type"),
		on[corev1.Pod]("metadata spec", statusField()),
		on[appsv1.ReplicaSet]("metadata spec", statusField()),
		on[appsv1.ReplicaSetSpec]("replicas minReadySeconds selector template"),
		on[appsv1.Deployment]("metadata spec", statusField()),
		on[appsv1.DeploymentSpec]("replicas selector template strategy minReadySeconds revisionHistoryLimit paused progressDeadlineSeconds"),
		on[appsv1.DeploymentStrategy]("type rollingUpdate"),
		on[appsv1.RollingUpdateDeployment]("maxUnavailable maxSurge"),
		on[corev1.PodTemplateSpec]("metadata spec"),
	}
}

func podFields() []typeRule {
	return []typeRule{
		on[corev1.PodSpec](
			"volumes initContainers containers restartPolicy terminationGracePeriodSeconds activeDeadlineSeconds dnsPolicy nodeSelector nodeName "+
				"hostNetwork hostPID hostIPC shareProcessNamespace securityContext imagePullSecrets hostname subdomain affinity tolerations hostAliases dnsConfig "+
				"resources "+
				"enableServiceLinks topologySpreadConstraints setHostnameAsFQDN hostnameOverride schedulingGates serviceAccountName serviceAccount priorityClassName priority preemptionPolicy runtimeClassName overhead",
			noEffect("automountServiceAccountToken", noAutomount).unless(`false`),
			unsupported("ephemeralContainers", "they are added to a running pod through an API, never by a manifest"),
			unsupported("schedulerName", "there is one scheduler, and without the one that is named the pod would wait for ever").unless(`"default-scheduler"`),
			unsupported("readinessGates", "no controller sets conditions of pods, so the pod would never be ready"),
			unsupported("os", "nodes run Linux").unless(`{"name":"linux"}`),
			unsupported("hostUsers", "containers share the user namespace of the node: the runc of Debian 12 (1.1) cannot map the owners of volumes for another, 1.2 can").unless(`true`),
			unsupported("resourceClaims", "devices are not allocated dynamically"),
			unsupported("schedulingGroup", "pods are placed one by one"),
		),
		on[corev1.PodSchedulingGate]("name"),
		on[corev1.HostAlias]("ip hostnames"),
		on[corev1.PodDNSConfig]("nameservers searches options"),
		on[corev1.PodDNSConfigOption]("name value"),
	}
}

func schedulingFields() []typeRule {
	return []typeRule{
		on[corev1.Affinity]("nodeAffinity podAffinity podAntiAffinity"),
		on[corev1.NodeAffinity]("requiredDuringSchedulingIgnoredDuringExecution preferredDuringSchedulingIgnoredDuringExecution"),
		on[corev1.NodeSelector]("nodeSelectorTerms"),
		on[corev1.NodeSelectorTerm]("matchExpressions matchFields"),
		on[corev1.NodeSelectorRequirement]("key operator values"),
		on[corev1.PreferredSchedulingTerm]("weight preference"),
		on[corev1.PodAffinity]("requiredDuringSchedulingIgnoredDuringExecution preferredDuringSchedulingIgnoredDuringExecution"),
		on[corev1.PodAntiAffinity]("requiredDuringSchedulingIgnoredDuringExecution preferredDuringSchedulingIgnoredDuringExecution"),
		on[corev1.WeightedPodAffinityTerm]("weight podAffinityTerm"),
		on[corev1.PodAffinityTerm]("labelSelector namespaces topologyKey namespaceSelector matchLabelKeys mismatchLabelKeys"),
		on[corev1.Toleration]("key operator value effect tolerationSeconds"),
		on[corev1.TopologySpreadConstraint]("maxSkew topologyKey whenUnsatisfiable labelSelector minDomains nodeAffinityPolicy nodeTaintsPolicy matchLabelKeys"),
	}
}

func containerFields() []typeRule {
	return []typeRule{
		on[corev1.Container](
			"name image command args workingDir ports envFrom env resources restartPolicy volumeMounts volumeDevices livenessProbe readinessProbe startupProbe "+
				"restartPolicyRules resizePolicy lifecycle terminationMessagePath terminationMessagePolicy imagePullPolicy securityContext stdin tty",
			noEffect("stdinOnce", "nobody attaches to a container's input"),
		),
		on[corev1.ContainerResizePolicy]("resourceName restartPolicy"),
		on[corev1.ContainerRestartRule]("action exitCodes"),
		on[corev1.ContainerRestartRuleOnExitCodes]("operator values"),
		on[corev1.ContainerPort]("name hostPort containerPort protocol hostIP"),
		on[corev1.EnvFromSource]("prefix configMapRef secretRef"),
		on[corev1.ConfigMapEnvSource]("name optional"),
		on[corev1.SecretEnvSource]("name optional"),
		on[corev1.EnvVar]("name value valueFrom"),
		on[corev1.EnvVarSource]("fieldRef resourceFieldRef configMapKeyRef secretKeyRef fileKeyRef"),
		on[corev1.FileKeySelector]("volumeName path key optional"),
		on[corev1.ObjectFieldSelector]("apiVersion fieldPath"),
		on[corev1.ResourceFieldSelector]("containerName resource divisor"),
		on[corev1.ConfigMapKeySelector]("name key optional"),
		on[corev1.SecretKeySelector]("name key optional"),
		on[corev1.ResourceRequirements]("limits requests", unsupported("claims", "devices are not allocated dynamically")),
		on[corev1.Probe]("exec httpGet tcpSocket grpc initialDelaySeconds timeoutSeconds periodSeconds successThreshold failureThreshold terminationGracePeriodSeconds"),
		on[corev1.ExecAction]("command"),
		on[corev1.HTTPGetAction]("path port host scheme httpHeaders"),
		on[corev1.HTTPHeader]("name value"),
		on[corev1.TCPSocketAction]("port host"),
		on[corev1.GRPCAction]("port service"),
		on[corev1.Lifecycle]("postStart preStop stopSignal"),
		on[corev1.LifecycleHandler]("exec httpGet sleep tcpSocket"),
		on[corev1.SleepAction]("seconds"),
	}
}

func securityFields() []typeRule {
	return []typeRule{
		on[corev1.PodSecurityContext](
			"runAsUser runAsGroup runAsNonRoot supplementalGroups fsGroup supplementalGroupsPolicy sysctls fsGroupChangePolicy seccompProfile appArmorProfile seLinuxOptions",
			noEffect("seLinuxChangePolicy", "volumes keep the labels they have"),
			unsupported("windowsOptions", "nodes run Linux").unless(`{}`),
		),
		on[corev1.SecurityContext](
			"capabilities privileged runAsUser runAsGroup runAsNonRoot readOnlyRootFilesystem allowPrivilegeEscalation procMount seccompProfile appArmorProfile seLinuxOptions",
			unsupported("windowsOptions", "nodes run Linux").unless(`{}`),
		),
		on[corev1.SELinuxOptions]("user role type level"),
		on[corev1.Capabilities]("add drop"),
		on[corev1.SeccompProfile]("type localhostProfile"),
		on[corev1.AppArmorProfile]("type localhostProfile"),
		on[corev1.Sysctl]("name value"),
	}
}

func volumeFields() []typeRule {
	return []typeRule{
		on[corev1.VolumeMount]("name readOnly mountPath subPath subPathExpr mountPropagation recursiveReadOnly"),
		on[corev1.VolumeDevice]("name devicePath"),
		on[corev1.Volume](
			"name hostPath emptyDir secret downwardAPI configMap projected nfs image persistentVolumeClaim ephemeral csi",
			unsupported("iscsi fc", noNetworkDisks),
			unsupported("gcePersistentDisk awsElasticBlockStore glusterfs rbd flexVolume cinder cephfs flocker azureFile vsphereVolume quobyte azureDisk "+
				"photonPersistentDisk portworxVolume scaleIO storageos", removedVolumes),
			unsupported("gitRepo", "Kubernetes has disabled it; clone in an init container"),
		),
		on[corev1.PersistentVolumeClaimVolumeSource]("claimName readOnly"),
		on[corev1.EphemeralVolumeSource]("volumeClaimTemplate"),
		on[corev1.PersistentVolumeClaimTemplate]("metadata spec"),
		on[corev1.CSIVolumeSource]("driver readOnly fsType volumeAttributes nodePublishSecretRef"),
		on[corev1.ImageVolumeSource]("reference pullPolicy"),
		on[corev1.HostPathVolumeSource]("path type"),
		on[corev1.EmptyDirVolumeSource]("medium sizeLimit"),
		on[corev1.SecretVolumeSource]("secretName items defaultMode optional"),
		on[corev1.ConfigMapVolumeSource]("name items defaultMode optional"),
		on[corev1.KeyToPath]("key path mode"),
		on[corev1.DownwardAPIVolumeSource]("items defaultMode"),
		on[corev1.DownwardAPIVolumeFile]("path fieldRef resourceFieldRef mode"),
		on[corev1.ProjectedVolumeSource]("sources defaultMode"),
		on[corev1.VolumeProjection](
			"secret downwardAPI configMap serviceAccountToken",
			unsupported("clusterTrustBundle podCertificate", "nothing signs certificates here"),
		),
		on[corev1.ServiceAccountTokenProjection]("audience expirationSeconds path"),
		on[corev1.SecretProjection]("name items optional"),
		on[corev1.DownwardAPIProjection]("items"),
		on[corev1.ConfigMapProjection]("name items optional"),
	}
}

func serviceFields() []typeRule {
	return []typeRule{
		on[corev1.Service]("metadata spec", statusField()),
		on[corev1.ServiceSpec](
			"ports selector clusterIP clusterIPs type externalIPs sessionAffinity externalName publishNotReadyAddresses sessionAffinityConfig externalTrafficPolicy internalTrafficPolicy allocateLoadBalancerNodePorts healthCheckNodePort trafficDistribution",
			noEffect("loadBalancerIP loadBalancerClass", "no cloud gives load balancers; the node port works"),
			notEnforced("loadBalancerSourceRanges", "no cloud gives load balancers; the node port is open to all"),
			unsupported("ipFamilies ipFamilyPolicy", "services have IPv4 addresses").unless(`["IPv4"] "SingleStack" "PreferDualStack"`),
		),
		on[corev1.ServicePort]("name protocol port targetPort nodePort",
			noEffect("appProtocol", "traffic is passed on unseen, whatever it carries")),
		on[corev1.SessionAffinityConfig]("clientIP"),
		on[corev1.ClientIPConfig]("timeoutSeconds"),
		on[corev1.Endpoints]("metadata subsets"),
		on[corev1.EndpointSubset]("addresses notReadyAddresses ports"),
		on[corev1.EndpointAddress]("ip hostname nodeName targetRef"),
		on[corev1.EndpointPort]("name port protocol",
			noEffect("appProtocol", "traffic is passed on unseen, whatever it carries")),
		on[discoveryv1.EndpointSlice]("metadata endpoints ports",
			unsupported("addressType", "endpoints have IPv4 addresses").unless(`"IPv4"`)),
		on[discoveryv1.Endpoint]("addresses conditions hostname targetRef nodeName",
			noEffect("deprecatedTopology zone hints", "endpoints by hand are equally near: preferences are for pods")),
		on[discoveryv1.EndpointConditions]("ready serving terminating"),
		on[discoveryv1.EndpointPort]("name protocol port",
			noEffect("appProtocol", "traffic is passed on unseen, whatever it carries")),
	}
}

func clusterFields() []typeRule {
	return []typeRule{
		on[desired.Cluster]("metadata spec"),
		on[desired.ClusterSpec]("unsupported guard network podSecurity storage metrics serviceAccounts placement nodes"),
		on[desired.PlacementSpec]("strategy"),
		on[desired.NodesSpec]("silentAfter tolerate lease failover"),
		on[desired.PodSecuritySpec]("enforce"),
		on[desired.StorageSpec]("keep"),
		on[desired.MetricsSpec]("prometheus queries"),
		on[desired.ServiceAccountsSpec]("issuer"),
		on[desired.GuardSpec]("objects percent"),
		on[desired.NetworkSpec]("serviceCIDR podCIDR domain nodePorts overlay"),
	}
}

// rule gives the decision about one field; ok is false for an undecided one.
func (t typeRule) rule(name string) (fieldRule, bool) {
	for n := range strings.FieldsSeq(t.works) {
		if n == name {
			return fieldRule{names: name, status: Works}, true
		}
	}
	for _, f := range t.other {
		for n := range strings.FieldsSeq(f.names) {
			if n == name {
				return f, true
			}
		}
	}
	return fieldRule{}, false
}
