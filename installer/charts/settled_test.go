package charts

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/clawbox/clawbox/installer"
)

// api answers GET with the text at a path, as an API server would.
func api(t *testing.T, at map[string]string) (kubeconfig string) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		b, ok := at[r.URL.Path]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			b = `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","message":"no ` + r.URL.Path + `","code":404}`
		}
		_, _ = io.WriteString(w, b)
	}))
	t.Cleanup(s.Close)
	kubeconfig = filepath.Join(t.TempDir(), "config")
	text := fmt.Sprintf("apiVersion: v1\nkind: Config\ncurrent-context: a\ncontexts: [{name: a, context: {cluster: a}}]\nclusters: [{name: a, cluster: {server: %q}}]\n", s.URL)
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return kubeconfig
}

const (
	apps       = "/apis/apps/v1/namespaces/kube-system/"
	nodePath   = "/api/v1/nodes/box"
	podsPath   = "/api/v1/namespaces/kube-system/pods"
	deployment = `{"kind":"DeploymentList","apiVersion":"apps/v1","items":[{"metadata":{"name":"coredns","namespace":"kube-system","generation":%d},"spec":{"selector":{"matchLabels":{"a":"b"}}},"status":{"observedGeneration":2,"replicas":%d,"updatedReplicas":1,"availableReplicas":%d}}]}`
	daemonset  = `{"kind":"DaemonSetList","apiVersion":"apps/v1","items":[{"metadata":{"name":"plugin","namespace":"kube-system","generation":1},"spec":{"selector":{"matchLabels":{"a":"b"}},"updateStrategy":{"type":"RollingUpdate"}},"status":{"observedGeneration":1,"desiredNumberScheduled":1,"currentNumberScheduled":1,"updatedNumberScheduled":%d,"numberAvailable":1}}]}`
	nodeText   = `{"kind":"Node","apiVersion":"v1","metadata":{"name":"box"},"status":{"conditions":[{"type":"Ready","status":"%s","reason":"R","message":"disk pressure"}],"nodeInfo":{"kubeletVersion":"v1.35.0+k3s1"}}}`
	crashing   = `{"kind":"PodList","apiVersion":"v1","items":[{"metadata":{"name":"coredns-1"},"status":{"containerStatuses":[{"name":"x","image":"clawbox.internal/coredns","state":{"waiting":{"reason":"CrashLoopBackOff"}},"lastState":{"terminated":{"exitCode":3}}}]}},
{"metadata":{"name":"coredns-2"},"status":{"containerStatuses":[{"name":"x","image":"clawbox.internal/coredns","state":{"running":{}}}]}},{"metadata":{"name":"coredns-3"},"status":{"conditions":[{"type":"PodScheduled","status":"False","message":"no room"}]}}]}`
)

// A cluster is settled when all is as it was asked, and otherwise the error says
// what is not, to a person who can't look any more.
func TestSettled(t *testing.T) {
	good := map[string]string{
		nodePath: fmt.Sprintf(nodeText, "True"), addons: `{"items":[{"metadata":{"name":"clawbox-coredns"},"spec":{"checksum":"aa"}}]}`,
		apps + "deployments": fmt.Sprintf(deployment, 2, 1, 1), apps + "statefulsets": `{"kind":"StatefulSetList","apiVersion":"apps/v1","items":[]}`,
		apps + "daemonsets": fmt.Sprintf(daemonset, 1), podsPath: crashing,
	}
	w := installer.Settled{Node: "box", Version: "v1.35.0+k3s1", Addons: map[string]string{"clawbox-coredns": "aa"}, Namespaces: []string{"kube-system"}}
	const lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/box"
	living := maps.Clone(good)
	for renewed, want := range map[time.Duration]string{-time.Hour: "no sign of life", time.Hour: ""} {
		living[lease] = fmt.Sprintf(`{"kind":"Lease","apiVersion":"coordination.k8s.io/v1","spec":{"renewTime":%q}}`, time.Now().Add(renewed).UTC().Format("2006-01-02T15:04:05.000000Z"))
		w := w
		w.Steady = time.Millisecond
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond) // one more round
		err := Client{}.Settled(ctx, api(t, living), w)
		cancel()
		if (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("a lease renewed %s from now: %v; want %q", renewed, err, want)
		}
	}
	for _, c := range []struct {
		name, path, text string
		change           func(*installer.Settled)
		want             []string
	}{
		{name: "all is well"},
		{name: "a version without build", change: func(w *installer.Settled) { w.Version = "v1.35.0" }},
		{name: "any version", change: func(w *installer.Settled) { w.Version = "" }},
		{name: "another K3s", change: func(w *installer.Settled) { w.Version = "v1.34.0+k3s1" }, want: []string{"runs K3s v1.35.0+k3s1; wanted v1.34.0+k3s1"}},
		{name: "no node", path: nodePath, want: []string{"no " + nodePath}},
		{name: "not ready", path: nodePath, text: fmt.Sprintf(nodeText, "False"), want: []string{"node box: R: disk pressure"}},
		{
			name: "no room on the disk", path: nodePath, text: strings.Replace(fmt.Sprintf(nodeText, "True"), `"conditions":[`, `"conditions":[{"type":"DiskPressure","status":"True","message":"kubelet has disk pressure"},`, 1),
			want: []string{"DiskPressure: kubelet has disk pressure"},
		},
		{name: "a manifest not applied", path: addons, text: `{"items":[{"metadata":{"name":"clawbox-coredns"},"spec":{"checksum":"bb"}}]}`, want: []string{"has not applied the manifest clawbox-coredns"}},
		{name: "no addons", path: addons, want: []string{"addons"}},
		{name: "not seen", path: apps + "deployments", text: fmt.Sprintf(deployment, 3, 1, 1), want: []string{"deployment coredns in kube-system", "has not seen it"}},
		{name: "the old one still there", path: apps + "deployments", text: fmt.Sprintf(deployment, 2, 2, 1), want: []string{"deployment coredns"}},
		{
			name: "crashing", path: apps + "deployments", text: fmt.Sprintf(deployment, 2, 1, 0),
			want: []string{"1 of 1 pods are up to date, 0 ready", "coredns-1: clawbox.internal/coredns: CrashLoopBackOff, ended with status 3", "coredns-2: clawbox.internal/coredns: it runs, but does not pass", "coredns-3: not scheduled: no room"},
		},
		{name: "a daemonset", path: apps + "daemonsets", text: fmt.Sprintf(daemonset, 0), want: []string{"daemonset plugin"}},
	} {
		at, w := maps.Clone(good), w
		if c.path != "" {
			at[c.path] = c.text
			if c.text == "" {
				delete(at, c.path)
			}
		}
		if c.change != nil {
			c.change(&w)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		err := Client{}.Settled(ctx, api(t, at), w)
		cancel()
		if (err == nil) != (c.want == nil) {
			t.Errorf("%s: got %v", c.name, err)
		}
		for _, word := range c.want {
			if err != nil && !strings.Contains(err.Error(), word) {
				t.Errorf("%s: got %v; want %q", c.name, err, word)
			}
		}
	}
}
