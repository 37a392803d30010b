// Package pods holds what a K3s cluster has to know to run agents as pods.
//
//	y, err := pods.Settings{Namespace: "clawbox-agents", System: "clawbox-system"}.Manifest()
//	toml := pods.Containerd("/opt/clawbox/current/bin/clawbox-runc")
//
// The manifest is one YAML stream: the agents' namespace (PodSecurity
// "restricted", no traffic by NetworkPolicy), the RuntimeClass, a
// ServiceAccount with a token for `clawbox serve` that may make, see and
// delete pods there and nothing else, and which nodes may read, and two
// ValidatingAdmissionPolicies (Kubernetes 1.30). They say early and in the API
// what the node holds to in any case: see appliance/gate. The containerd part
// goes behind K3s's config-v3.toml.tmpl on every node.
package pods

import (
	"bytes"
	_ "embed"
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"text/template"
)

//go:embed agents.yaml
var agents string

var agentsTemplate = template.Must(template.New("agents.yaml").Option("missingkey=error").Parse(agents))

// Settings are the two namespaces: the agents', in which nothing but agents
// runs, and that of the account which makes them.
type Settings struct {
	Namespace string
	System    string
}

var label = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// Manifest is the YAML to apply.
func (s Settings) Manifest() ([]byte, error) {
	for _, n := range []string{s.Namespace, s.System} {
		if !label.MatchString(n) {
			return nil, fmt.Errorf("pods: namespace %q; want 1 to 63 of a-z, 0-9 and -", n)
		}
	}
	if s.Namespace == s.System {
		return nil, fmt.Errorf("pods: the namespace %s is the agents' and the account's; want two", s.Namespace)
	}
	var b bytes.Buffer
	err := agentsTemplate.Execute(&b, s)
	return b.Bytes(), err
}

// Containerd is the runtime's entry in containerd's configuration (version 3),
// as a part of K3s's template. runtime is the absolute path of clawbox-runc.
//
// It becomes the node's default, too. Containers of other namespaces go on to
// runc at once; a pod of the agents' namespace that does not name the
// RuntimeClass is refused even where admission let it pass. K3s's own setting
// default-runtime takes only runtimes that it knows; with it, containerd says
// that the table is there twice, and does not start.
// Source: https://docs.k3s.io/advanced#configuring-containerd.
func Containerd(runtime string) (string, error) {
	if !filepath.IsAbs(runtime) {
		return "", fmt.Errorf("pods: the runtime's path is %q; want an absolute one", runtime)
	}
	const table = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.'clawbox'"
	return "\n[plugins.'io.containerd.cri.v1.runtime'.containerd]\n  default_runtime_name = \"clawbox\"\n" + table + "]\n  runtime_type = \"io.containerd.runc.v2\"\n" +
		table + ".options]\n  BinaryName = " + strconv.Quote(runtime) + "\n  SystemdCgroup = {{ .SystemdCgroup }}\n", nil
}
