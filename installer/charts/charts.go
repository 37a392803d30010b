// Package charts installs the installer's charts on a cluster, with Helm as a
// library: no helm program, no chart repository, no network but the cluster's
// own API.
//
//	c := charts.Client{Say: func(s string) { fmt.Println(s) }}
//	did, err := c.Apply(ctx, "/etc/rancher/k3s/k3s.yaml", cs)
//
// Apply is made to be repeated. A chart whose files and values are those of its
// deployed release is left alone; one that a killed run left half-way is
// continued; objects that exist already (Kubernetes makes a service account in
// each namespace) are taken over. Helm keeps the last five revisions of each
// release, so `helm history` and `helm rollback` of an operator's own Helm work.
//
// It is a package of its own, in a program of its own (clawbox-cluster), because
// Helm brings Kubernetes' client libraries; the installer knows them only by its
// interface Cluster.
package charts

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"helm.sh/helm/v3/pkg/action"
	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/release"
	"helm.sh/helm/v3/pkg/storage/driver"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/clawbox/clawbox/installer"
)

// Bounds. A model of 100 GB and more takes most of an hour to load from disk.
const (
	waitFor   = 75 * time.Minute
	revisions = 5
	pollEvery = time.Second
)

// digestLabel is on each release: of the chart's files and values, shortened
// to what a label may hold.
const digestLabel = "clawbox.io-digest"

// Client is an installer.Cluster.
type Client struct {
	// Say, if set, hears of each chart before it is installed.
	Say func(string)
}

var _ installer.Cluster = Client{}

// flags make Helm and client-go read one file and nothing of the environment.
func flags(kubeconfig, namespace string) *genericclioptions.ConfigFlags {
	f := genericclioptions.NewConfigFlags(false)
	f.KubeConfig, f.Namespace = &kubeconfig, &namespace
	return f
}

// Ready waits until the node says that it is ready.
func (Client) Ready(ctx context.Context, kubeconfig, name string) error {
	var last error
	for {
		last = ready(ctx, kubeconfig, name)
		if last == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the node %s did not become ready: %w", name, last)
		case <-time.After(pollEvery):
		}
	}
}

func clientset(kubeconfig string) (*kubernetes.Clientset, error) {
	cfg, err := flags(kubeconfig, "").ToRESTConfig()
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(cfg)
}

func ready(ctx context.Context, kubeconfig, name string) error {
	cs, err := clientset(kubeconfig)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	n, err := cs.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	return nodeReady(n)
}

func nodeReady(n *corev1.Node) error {
	for _, c := range n.Status.Conditions { // under pressure it may be ready, and runs nothing new
		if c.Status == corev1.ConditionTrue && (c.Type == corev1.NodeDiskPressure || c.Type == corev1.NodeMemoryPressure || c.Type == corev1.NodePIDPressure) {
			return fmt.Errorf("%s: %s", c.Type, c.Message)
		}
	}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			if c.Status == corev1.ConditionTrue {
				return nil
			}
			return fmt.Errorf("%s: %s", c.Reason, c.Message)
		}
	}
	return errors.New("its kubelet has not reported yet")
}

// Version is the API server's.
func (Client) Version(_ context.Context, kubeconfig string) (string, error) {
	cs, err := clientset(kubeconfig)
	if err != nil {
		return "", err
	}
	v, err := cs.Discovery().ServerVersion()
	if err != nil {
		return "", err
	}
	return v.GitVersion, nil
}

// Account reads a service account's secret and waits until Kubernetes has put
// the token into it.
func (Client) Account(ctx context.Context, kubeconfig, namespace, secret string) (installer.Account, error) {
	for {
		a, err := account(ctx, kubeconfig, namespace, secret)
		if err == nil {
			return a, nil
		}
		select {
		case <-ctx.Done():
			return a, fmt.Errorf("no token in the secret %s of %s: %w", secret, namespace, err)
		case <-time.After(pollEvery):
		}
	}
}

func account(ctx context.Context, kubeconfig, namespace, secret string) (a installer.Account, err error) {
	cs, err := clientset(kubeconfig)
	if err != nil {
		return a, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	s, err := cs.CoreV1().Secrets(namespace).Get(ctx, secret, metav1.GetOptions{})
	if err != nil {
		return a, err
	}
	a = installer.Account{Token: string(s.Data[corev1.ServiceAccountTokenKey]), CA: s.Data[corev1.ServiceAccountRootCAKey]}
	if a.Token == "" || len(a.CA) == 0 {
		return a, errors.New("it is empty until Kubernetes has filled it")
	}
	return a, nil
}

// Apply installs or upgrades cs in order.
func (c Client) Apply(ctx context.Context, kubeconfig string, cs []installer.Chart) (string, error) {
	var did []string
	rest.SetDefaultWarningHandler(rest.NoWarnings{}) // of the API server, about what is meant
	for _, x := range cs {
		what, err := c.one(ctx, kubeconfig, x)
		if err != nil {
			return "", fmt.Errorf("chart %s: %w; look at: kubectl get pods,events -n %s", x.Name, err, x.Namespace)
		}
		if what != "" {
			did = append(did, what+" "+x.Name)
		}
	}
	return strings.Join(did, ", "), nil
}

// one brings one release to what x says.
func (c Client) one(ctx context.Context, kubeconfig string, x installer.Chart) (string, error) {
	cfg := new(action.Configuration)
	if err := cfg.Init(flags(kubeconfig, x.Namespace), x.Namespace, "secret", func(string, ...any) {}); err != nil {
		return "", err
	}
	// Kubernetes makes a service account in a new namespace while Helm is about
	// to; the next attempt finds it and takes it over.
	did, err := c.bring(ctx, cfg, x)
	for tries := 1; tries < 3 && err != nil && strings.Contains(err.Error(), "already exists"); tries++ {
		_, err = c.bring(ctx, cfg, x)
	}
	return did, err
}

func (c Client) bring(ctx context.Context, cfg *action.Configuration, x installer.Chart) (string, error) {
	ch, err := load(x)
	if err != nil {
		return "", err
	}
	sum, err := digest(x)
	if err != nil {
		return "", err
	}
	last, err := cfg.Releases.Last(x.Name)
	switch {
	case errors.Is(err, driver.ErrReleaseNotFound):
		c.say("install " + x.Name)
		return "installed", install(ctx, cfg, x, ch, sum)
	case err != nil:
		return "", err
	case last.Info.Status == release.StatusDeployed && last.Labels[digestLabel] == sum:
		return "", nil
	case last.Info.Status.IsPending():
		// Whoever was at it is gone: the installer holds its lock.
		last.SetStatus(release.StatusFailed, "interrupted")
		if err := cfg.Releases.Update(last); err != nil {
			return "", err
		}
	}
	c.say("upgrade " + x.Name)
	return "upgraded", upgrade(ctx, cfg, x, ch, sum)
}

func (c Client) say(s string) {
	if c.Say != nil {
		c.Say(s)
	}
}

func install(ctx context.Context, cfg *action.Configuration, x installer.Chart, ch *chart.Chart, sum string) error {
	i := action.NewInstall(cfg)
	i.ReleaseName, i.Namespace = x.Name, x.Namespace
	i.Wait, i.Timeout, i.TakeOwnership = x.Wait, waitFor, true
	i.Labels = map[string]string{digestLabel: sum}
	_, err := i.RunWithContext(ctx, ch, x.Values)
	return err
}

func upgrade(ctx context.Context, cfg *action.Configuration, x installer.Chart, ch *chart.Chart, sum string) error {
	u := action.NewUpgrade(cfg)
	u.Namespace = x.Namespace
	u.Wait, u.Timeout, u.TakeOwnership = x.Wait, waitFor, true
	u.ResetValues, u.MaxHistory = true, revisions
	u.Labels = map[string]string{digestLabel: sum}
	_, err := u.RunWithContext(ctx, x.Name, ch, x.Values)
	return err
}

// load makes Helm's chart of the files.
func load(x installer.Chart) (*chart.Chart, error) {
	var fs []*loader.BufferedFile
	for _, name := range slices.Sorted(maps.Keys(x.Files)) {
		fs = append(fs, &loader.BufferedFile{Name: name, Data: x.Files[name]})
	}
	return loader.LoadFiles(fs)
}

// digest names a chart's files and values.
func digest(x installer.Chart) (string, error) {
	b, err := json.Marshal([]any{x.Files, x.Values}) // maps come out sorted
	if err != nil {
		return "", err
	}
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:20]), nil
}
