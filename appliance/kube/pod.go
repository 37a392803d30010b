package kube

// The types below are those of k8s.io/api/core/v1, by the JSON names of
// https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/.

// Pod is one pod, as far as this package's users need it.
type Pod struct {
	APIVersion string  `json:"apiVersion"`
	Kind       string  `json:"kind"`
	Metadata   Meta    `json:"metadata"`
	Spec       PodSpec `json:"spec"`
	Status     Status  `json:"status,omitzero"`
}

// Meta says which object it is. UID is the server's, and never used again.
type Meta struct {
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace,omitempty"`
	UID         string            `json:"uid,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// PodSpec is what is asked for. The pointers are fields whose default is true.
type PodSpec struct {
	RuntimeClassName              string            `json:"runtimeClassName,omitempty"`
	NodeSelector                  map[string]string `json:"nodeSelector,omitempty"`
	RestartPolicy                 string            `json:"restartPolicy,omitempty"`
	DNSPolicy                     string            `json:"dnsPolicy,omitempty"`
	AutomountServiceAccountToken  *bool             `json:"automountServiceAccountToken,omitempty"`
	EnableServiceLinks            *bool             `json:"enableServiceLinks,omitempty"`
	TerminationGracePeriodSeconds int64             `json:"terminationGracePeriodSeconds,omitempty"`
	DNSConfig                     *DNSConfig        `json:"dnsConfig,omitempty"`
	SecurityContext               *Security         `json:"securityContext,omitempty"`
	Containers                    []Container       `json:"containers"`
}

// DNSConfig is what dnsPolicy None needs.
type DNSConfig struct {
	Nameservers []string `json:"nameservers,omitempty"`
}

// Container is one program of a pod.
type Container struct {
	Name            string    `json:"name"`
	Image           string    `json:"image"`
	ImagePullPolicy string    `json:"imagePullPolicy,omitempty"`
	Command         []string  `json:"command,omitempty"`
	Resources       Resources `json:"resources,omitzero"`
	SecurityContext *Security `json:"securityContext,omitempty"`
}

// Security is what of PodSecurityContext and SecurityContext is needed for
// PodSecurity's level "restricted".
type Security struct {
	RunAsNonRoot             *bool         `json:"runAsNonRoot,omitempty"`
	RunAsUser                int64         `json:"runAsUser,omitempty"`
	RunAsGroup               int64         `json:"runAsGroup,omitempty"`
	Seccomp                  *Seccomp      `json:"seccompProfile,omitempty"`
	AllowPrivilegeEscalation *bool         `json:"allowPrivilegeEscalation,omitempty"`
	ReadOnlyRootFilesystem   *bool         `json:"readOnlyRootFilesystem,omitempty"`
	Capabilities             *Capabilities `json:"capabilities,omitempty"`
}

// Seccomp names a profile's kind, such as "RuntimeDefault".
type Seccomp struct {
	Type string `json:"type"`
}

// Capabilities are without "CAP_".
type Capabilities struct {
	Drop []string `json:"drop,omitempty"`
}

// Resources are quantities by name, such as "memory": "256Mi".
type Resources struct {
	Requests map[string]string `json:"requests,omitempty"`
	Limits   map[string]string `json:"limits,omitempty"`
}

// Status is what became of it.
type Status struct {
	Phase             string            `json:"phase,omitempty"`
	Reason            string            `json:"reason,omitempty"`
	Message           string            `json:"message,omitempty"`
	Conditions        []Condition       `json:"conditions,omitempty"`
	ContainerStatuses []ContainerStatus `json:"containerStatuses,omitempty"`
}

// Condition is one of the steps that a pod has or has not come through.
type Condition struct {
	Type    string `json:"type"`
	Status  string `json:"status"` // "True", "False" or "Unknown"
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
}

// ContainerStatus is a container's state; one of the pointers is set.
type ContainerStatus struct {
	State struct {
		Waiting    *Reason `json:"waiting,omitempty"`
		Terminated *Reason `json:"terminated,omitempty"`
	} `json:"state,omitzero"`
}

// Reason explains a state.
type Reason struct {
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
}

// patience are the reasons to wait that pass by themselves; with any other a
// container does not start. Source: pkg/kubelet/kuberuntime and pkg/kubelet/images.
var patience = map[string]bool{"": true, "ContainerCreating": true, "PodInitializing": true}

// Stuck says why a pod will not start, or "".
func (p *Pod) Stuck() string {
	for _, c := range p.Status.Conditions {
		if c.Type == "PodScheduled" && c.Status == "False" {
			return "it is not scheduled: " + c.Reason + ": " + c.Message
		}
	}
	for _, c := range p.Status.ContainerStatuses {
		if w := c.State.Waiting; w != nil && !patience[w.Reason] {
			return w.Reason + ": " + w.Message
		}
		if t := c.State.Terminated; t != nil {
			return "it ended: " + t.Reason + ": " + t.Message
		}
	}
	if p.Status.Phase == "Failed" || p.Status.Phase == "Succeeded" {
		return p.Status.Phase + ": " + p.Status.Reason + ": " + p.Status.Message
	}
	return ""
}
