package pods

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"
)

// object is what all of them have.
type object struct {
	Kind     string `yaml:"kind"`
	Metadata struct {
		Name      string `yaml:"name"`
		Namespace string `yaml:"namespace"`
	} `yaml:"metadata"`
	Rules []struct {
		Resources     []string `yaml:"resources"`
		ResourceNames []string `yaml:"resourceNames"`
		Verbs         []string `yaml:"verbs"`
	} `yaml:"rules"`
	RoleRef struct {
		Name string `yaml:"name"`
	} `yaml:"roleRef"`
	Subjects []struct {
		Kind string `yaml:"kind"`
		Name string `yaml:"name"`
	} `yaml:"subjects"`
	Spec struct {
		PolicyName        string   `yaml:"policyName"`
		FailurePolicy     string   `yaml:"failurePolicy"`
		ValidationActions []string `yaml:"validationActions"`
		Validations       []struct {
			Expression string `yaml:"expression"`
			Message    string `yaml:"message"`
		} `yaml:"validations"`
	} `yaml:"spec"`
}

func TestManifest(t *testing.T) {
	b, err := Settings{"agents", "sys"}.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	d := yaml.NewDecoder(bytes.NewReader(b))
	var all []object
	for {
		var o object
		err := d.Decode(&o)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, o)
	}
	var policies, bound, rights []string
	for _, o := range all {
		switch o.Kind {
		case "Role":
			for _, r := range o.Rules {
				rights = append(rights, fmt.Sprint(o.Metadata.Name, " in ", o.Metadata.Namespace, ": ", r.Resources, r.ResourceNames, r.Verbs))
			}
		case "RoleBinding":
			for _, s := range o.Subjects {
				rights = append(rights, fmt.Sprint(s.Kind, " ", s.Name, ": ", o.RoleRef.Name))
			}
		case "ValidatingAdmissionPolicy":
			policies = append(policies, o.Metadata.Name)
			if o.Spec.FailurePolicy != "Fail" {
				t.Errorf("policy %s lets pass what it can't judge", o.Metadata.Name)
			}
			for _, v := range o.Spec.Validations {
				if v.Expression == "" || v.Message == "" {
					t.Errorf("policy %s: %+v", o.Metadata.Name, v)
				}
			}
		case "ValidatingAdmissionPolicyBinding":
			bound = append(bound, o.Spec.PolicyName)
			if !slices.Equal(o.Spec.ValidationActions, []string{"Deny"}) {
				t.Errorf("binding %s: %v", o.Metadata.Name, o.Spec.ValidationActions)
			}
		}
	}
	// The account makes pods in its namespace, and nodes read its token: no more.
	if want := []string{
		"clawbox in agents: [pods] [] [create get list delete]", "ServiceAccount clawbox: clawbox",
		"clawbox-nodes in sys: [secrets] [clawbox-token] [get]", "Group system:nodes: clawbox-nodes",
	}; !slices.Equal(rights, want) {
		t.Errorf("got rights %q; want %q", rights, want)
	}
	if len(all) != 14 || len(policies) != 2 || !slices.Equal(policies, bound) {
		t.Errorf("%d objects, policies %v, bound %v", len(all), policies, bound)
	}
	for _, bad := range []Settings{{}, {"a", "a"}, {"a", "B"}, {"a\n", "b"}} {
		if _, err := bad.Manifest(); err == nil {
			t.Errorf("settings %+v are accepted", bad)
		}
	}
}

func TestContainerd(t *testing.T) {
	s, err := Containerd("/opt/clawbox-runc")
	if err != nil || !strings.Contains(s, `BinaryName = "/opt/clawbox-runc"`) || strings.Count(s, "runtimes.'clawbox'") != 2 || !strings.Contains(s, `default_runtime_name = "clawbox"`) {
		t.Errorf("got %s, %v", s, err)
	}
	if _, err := Containerd("clawbox-runc"); err == nil {
		t.Error("a relative path is accepted")
	}
}
