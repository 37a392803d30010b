package k3s

import (
	"errors"
	"fmt"
	"slices"
)

// Tenant is a namespace of its own with bounds. Zero fields get what
// DefaultTenant has.
type Tenant struct {
	Name    string // DNS label; the namespace
	CPU     string // all pods together, as a Kubernetes quantity
	Memory  string
	Storage string // all volume claims together
	Pods    int
	Level   string // Pod Security Standard: "restricted", "baseline" or "privileged"
}

// DefaultTenant is what a tenant gets that asks for nothing.
var DefaultTenant = Tenant{CPU: "4", Memory: "8Gi", Storage: "20Gi", Pods: 20, Level: "restricted"}

// reserved are namespaces that are nobody's.
var reserved = []string{"default", "kube-system", "kube-public", "kube-node-lease"}

// Manifest returns the tenant's namespace with its default-deny network policy,
// quota and limits, as one YAML stream that can be applied again and again. Apply
// it on the server (kubectl apply --server-side): the cluster makes the
// namespace's default service account, too, and either may be first.
func (t Tenant) Manifest() ([]byte, error) {
	t = t.filled()
	errs := []error{
		match("Name", t.Name, label, "a DNS label"),
		match("CPU", t.CPU, quantity, "a quantity such as 4 or 500m"),
		match("Memory", t.Memory, quantity, "a quantity such as 8Gi"),
		match("Storage", t.Storage, quantity, "a quantity such as 20Gi"),
	}
	if slices.Contains(reserved, t.Name) {
		errs = append(errs, fmt.Errorf("the namespace %s belongs to the cluster: want another name", t.Name))
	}
	if t.Pods < 1 {
		errs = append(errs, fmt.Errorf("%d pods: want 1 or more", t.Pods))
	}
	if !slices.Contains([]string{"restricted", "baseline", "privileged"}, t.Level) {
		errs = append(errs, fmt.Errorf("level %q: want restricted, baseline or privileged", t.Level))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("k3s: tenant %q: %w", t.Name, err)
	}
	return render("tenant.yaml", t)
}

func (t Tenant) filled() Tenant {
	d := DefaultTenant
	for _, f := range []struct{ to, from *string }{
		{&t.CPU, &d.CPU}, {&t.Memory, &d.Memory}, {&t.Storage, &d.Storage}, {&t.Level, &d.Level},
	} {
		if *f.to == "" {
			*f.to = *f.from
		}
	}
	if t.Pods == 0 {
		t.Pods = d.Pods
	}
	return t
}
