package charts

import (
	"errors"
	"io"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	"helm.sh/helm/v3/pkg/action"
	"helm.sh/helm/v3/pkg/chartutil"
	kubefake "helm.sh/helm/v3/pkg/kube/fake"
	"helm.sh/helm/v3/pkg/release"
	"helm.sh/helm/v3/pkg/storage"
	"helm.sh/helm/v3/pkg/storage/driver"

	"github.com/clawbox/clawbox/installer"
	"github.com/clawbox/clawbox/installer/host"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// memory is a Helm without a cluster: releases in memory, and Helm's own fake
// of the API, which takes everything.
func memory(fail error) *action.Configuration {
	k := &kubefake.FailingKubeClient{PrintingKubeClient: kubefake.PrintingKubeClient{Out: io.Discard}, WaitError: fail}
	return &action.Configuration{
		Releases: storage.Init(driver.NewMemory()), KubeClient: k, Capabilities: chartutil.DefaultCapabilities, Log: func(string, ...any) {},
	}
}

func small() installer.Chart {
	return installer.Chart{Name: "a", Namespace: "ns", Values: map[string]any{"x": "1"}, Files: map[string][]byte{
		"Chart.yaml":       []byte("apiVersion: v2\nname: a\nversion: 1.0.0\n"),
		"templates/a.yaml": []byte("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {x: {{ .Values.x | quote }}}\n"),
	}}
}

// The same charts again change nothing; other values are an upgrade; what a
// killed run left pending, or a failing one failed, is continued.
func TestBring(t *testing.T) {
	cfg, x := memory(nil), small()
	bring := func(cfg *action.Configuration, want string) {
		t.Helper()
		if got, err := (Client{}).bring(t.Context(), cfg, x); got != want || err != nil {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
	}
	bring(cfg, "installed")
	bring(cfg, "")
	x.Values["x"] = "2"
	bring(cfg, "upgraded")
	bring(cfg, "")
	last, err := cfg.Releases.Last("a")
	if err != nil || !strings.Contains(last.Manifest, `x: "2"`) {
		t.Errorf("got %+v, %v", last, err)
	}
	for _, s := range []release.Status{release.StatusPendingUpgrade, release.StatusPendingInstall, release.StatusFailed} {
		last, err := cfg.Releases.Last("a")
		if err != nil {
			t.Fatal(err)
		}
		last.SetStatus(s, "a run was killed here")
		if err := cfg.Releases.Update(last); err != nil {
			t.Fatal(err)
		}
		bring(cfg, "upgraded")
		bring(cfg, "")
	}
	// A first installation whose pods did not get ready is continued too.
	x.Wait = true
	bad := memory(errors.New("pods are not ready"))
	if _, err := (Client{}).bring(t.Context(), bad, x); err == nil || !strings.Contains(err.Error(), "pods are not ready") {
		t.Errorf("got %v", err)
	}
	good := memory(nil)
	good.Releases = bad.Releases
	bring(good, "upgraded")
}

// world is a release with every image, and a machine with two GPUs.
func world() (host.Facts, installer.Answers, installer.Release) {
	h := func(c string) v1.Hash { return v1.Hash{Algorithm: "sha256", Hex: strings.Repeat(c, 64)} }
	r := installer.Release{Name: "demo", Version: "1.0.0", Sequence: 1, Digest: h("a").String()}
	for _, n := range []string{"pause", "coredns", "local-path-provisioner", "busybox", "nvidia-device-plugin", "victoria-metrics", "dcgm-exporter", "vllm", "nim", "ollama"} {
		r.Items = append(r.Items, installer.Item{Name: n, Kind: "image", Ref: "ghcr.io/acme/" + n + ":1.0.0", Digest: h("b")})
	}
	a := installer.DefaultAnswers(r)
	a.Profile = "cluster"
	a.Cluster = installer.ClusterAnswers{Role: installer.RoleServer, Telemetry: true, Tenants: []installer.TenantAnswers{{Name: "acme"}}}
	for _, e := range installer.Engines {
		m := "m-" + e
		r.Items = append(r.Items, installer.Item{Name: m, Kind: "model", Ref: m + ":1.0.0", Size: 8 << 30, Digest: h("c")})
		img, _, _ := strings.Cut(e, "-")
		a.Cluster.Models = append(a.Cluster.Models, installer.ServingAnswers{Model: m, Engine: e, Image: img, GPUs: 1, Profile: "p1"})
	}
	f := host.Facts{Hostname: "edge-7", CPUs: 16, Memory: host.Memory{Total: 128 << 30}, Addresses: []string{"10.0.2.7"}, GPUs: []host.GPU{{}, {}}}
	return f, a, r
}

// render runs a chart's templates as an installation would.
func render(t *testing.T, x installer.Chart) (docs []map[string]any) {
	t.Helper()
	ch, err := load(x)
	if err != nil {
		t.Fatal(err)
	}
	i := action.NewInstall(memory(nil))
	i.ReleaseName, i.Namespace, i.DryRun, i.ClientOnly = x.Name, x.Namespace, true, true
	rel, err := i.RunWithContext(t.Context(), ch, x.Values)
	if err != nil {
		t.Fatalf("%s: %v", x.Name, err)
	}
	d := yaml.NewDecoder(strings.NewReader(rel.Manifest))
	for {
		var m map[string]any
		if err := d.Decode(&m); errors.Is(err, io.EOF) {
			return docs
		} else if err != nil {
			t.Fatalf("%s: %v in\n%s", x.Name, err, rel.Manifest)
		}
		docs = append(docs, m)
	}
}

// at walks down maps by key.
func at(v any, keys ...string) any {
	for _, k := range keys {
		m, _ := v.(map[string]any)
		v = m[k]
	}
	return v
}

// Every pod of ours keeps to "restricted" by what it says itself, names its
// images by digest in the local registry, has limits, and gets no key to the
// API; the device plugin alone sees folders of the node.
func TestPods(t *testing.T) {
	f, a, r := world()
	cs, err := a.Charts(f, r)
	if err != nil {
		t.Fatal(err)
	}
	pods := 0
	for _, x := range cs {
		for _, d := range render(t, x) {
			spec, ok := at(d, "spec", "template", "spec").(map[string]any)
			if !ok {
				continue
			}
			pods++
			who := x.Name + "/" + at(d, "metadata", "name").(string)
			if x.Name != "device-plugin" {
				checkPod(t, who, spec)
			}
			if tok := spec["automountServiceAccountToken"]; tok != (who == "telemetry/telemetry") {
				t.Errorf("%s: automountServiceAccountToken %v", who, tok)
			}
			inits, _ := spec["initContainers"].([]any)
			for _, c := range append(inits, spec["containers"].([]any)...) {
				checkContainer(t, who, c)
			}
		}
	}
	if want := 3 + len(installer.Engines); pods != want {
		t.Errorf("got %d kinds of pods; want %d", pods, want)
	}
}

func checkPod(t *testing.T, who string, spec map[string]any) {
	t.Helper()
	if at(spec, "securityContext", "runAsNonRoot") != true || at(spec, "securityContext", "seccompProfile", "type") != "RuntimeDefault" {
		t.Errorf("%s: securityContext %v", who, spec["securityContext"])
	}
	vols, _ := spec["volumes"].([]any)
	for _, v := range vols {
		if at(v, "hostPath") != nil {
			t.Errorf("%s: volume %v", who, v)
		}
	}
}

func checkContainer(t *testing.T, who string, c any) {
	t.Helper()
	img, _ := at(c, "image").(string)
	if !strings.HasPrefix(img, "clawbox.internal/ghcr.io/acme/") || !strings.Contains(img, "@sha256:") {
		t.Errorf("%s: image %q", who, img)
	}
	if at(c, "securityContext", "allowPrivilegeEscalation") != false || at(c, "securityContext", "capabilities", "drop").([]any)[0] != "ALL" {
		t.Errorf("%s: securityContext %v", who, at(c, "securityContext"))
	}
	if at(c, "resources", "limits", "memory") == nil || at(c, "resources", "limits", "cpu") == nil {
		t.Errorf("%s: no limits", who)
	}
}

func TestCharts(t *testing.T) {
	f, a, r := world()
	cs, err := a.Charts(f, r)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]map[string]any{}
	for _, x := range cs {
		for _, d := range render(t, x) {
			all[d["kind"].(string)] = append(all[d["kind"].(string)], d)
		}
	}
	// Four namespaces, each with a policy that denies, a quota and limits; and the
	// agents', whose budgets are their policies', with the one of their account.
	for kind, want := range map[string]int{
		"Namespace": 6, "ResourceQuota": 4, "LimitRange": 4, "NetworkPolicy": 7, "PersistentVolume": len(installer.Engines), "RuntimeClass": 2, "ServiceAccount": 6, "Secret": 1,
	} {
		if len(all[kind]) != want {
			t.Errorf("got %d of %s; want %d", len(all[kind]), kind, want)
		}
	}
	for _, d := range all["Namespace"] {
		level, want := at(d, "metadata", "labels", "pod-security.kubernetes.io/enforce"), "restricted"
		if at(d, "metadata", "name") == "clawbox-gpu" {
			want = "privileged"
		}
		if level != want {
			t.Errorf("%v: Pod Security %v; want %s", at(d, "metadata", "name"), level, want)
		}
	}
	text, err := yaml.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"value: cdi-cri", "nvidia.com/gpu: 1", "readOnly: true", "clusterIP: 10.43.0.64", "NIM_CACHE_PATH", "NIM_MODEL_PATH", "NIM_ENGINE_MODEL_PATH", "OLLAMA_MODELS", "HF_HUB_OFFLINE", "10.0.2.7:10250"} {
		if !strings.Contains(string(text), s) {
			t.Errorf("no %q in what the charts make", s)
		}
	}
	// Without GPUs nothing of theirs is there.
	f.GPUs, a.Cluster.Models = nil, nil
	if cs, err = a.Charts(f, r); err != nil || len(cs) != 6 {
		t.Errorf("without GPUs: %d charts, %v", len(cs), err)
	}
	for _, d := range render(t, cs[len(cs)-1]) {
		if at(d, "metadata", "name") == "gpu-exporter" {
			t.Error("an exporter of GPUs without any")
		}
	}
}
