package charts

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/clawbox/clawbox/installer"
)

// Settled waits until the cluster looks as w says, or ctx ends. What it asks is
// true of now, not of before K3s was started again: the node's kubelet is of the
// version wanted, K3s has applied the manifests that lie there (it writes their
// sums down when it has), and controllers have seen the workloads as they are.
func (Client) Settled(ctx context.Context, kubeconfig string, w installer.Settled) error {
	begun := time.Now()
	var since time.Time // all of it holds; zero: it does not
	var last error
	for {
		err := settled(ctx, kubeconfig, w)
		if err == nil && w.Steady > 0 {
			err = alive(ctx, kubeconfig, w.Node, begun)
		}
		switch {
		case err != nil:
			since = time.Time{}
		case since.IsZero():
			since = time.Now()
		}
		if err == nil && time.Since(since) >= w.Steady {
			return nil
		}
		if err == nil {
			err = fmt.Errorf("all of it holds since %s; wanted that for %s", since.Format(time.TimeOnly), w.Steady)
		}
		if last == nil || ctx.Err() == nil { // "deadline exceeded" would hide the reason
			last = err
		}
		select {
		case <-ctx.Done():
			return last
		case <-time.After(pollEvery):
		}
	}
}

// alive wants the node's kubelet to have renewed its lease since, which it does
// every ten seconds (KEP-589).
func alive(ctx context.Context, kubeconfig, node string, since time.Time) error {
	cs, err := clientset(kubeconfig)
	if err != nil {
		return err
	}
	l, err := cs.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(ctx, node, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if t := l.Spec.RenewTime; t == nil || !t.After(since) {
		return fmt.Errorf("node %s: its kubelet has given no sign of life since %s", node, since.Format(time.TimeOnly))
	}
	return nil
}

func settled(ctx context.Context, kubeconfig string, w installer.Settled) error {
	cs, err := clientset(kubeconfig)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	n, err := cs.CoreV1().Nodes().Get(ctx, w.Node, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if err := nodeReady(n); err != nil {
		return fmt.Errorf("node %s: %w", w.Node, err)
	}
	v := n.Status.NodeInfo.KubeletVersion
	if plain, _, _ := strings.Cut(v, "+"); w.Version != "" && v != w.Version && plain != w.Version {
		return fmt.Errorf("node %s runs K3s %s; wanted %s, which the release names", w.Node, v, w.Version)
	}
	if err := applied(ctx, cs, w.Addons); err != nil {
		return err
	}
	for _, ns := range w.Namespaces {
		if err := workloads(ctx, cs, ns); err != nil {
			return err
		}
	}
	return nil
}

// addons are K3s's own record of the manifests that it has applied.
const addons = "/apis/k3s.cattle.io/v1/namespaces/kube-system/addons"

func applied(ctx context.Context, cs *kubernetes.Clientset, want map[string]string) error {
	if len(want) == 0 {
		return nil
	}
	b, err := cs.RESTClient().Get().AbsPath(addons).Do(ctx).Raw()
	if err != nil {
		return fmt.Errorf("addons: %w", err)
	}
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Spec     struct{ Checksum string }
		}
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return fmt.Errorf("addons: %w", err)
	}
	have := map[string]string{}
	for _, a := range list.Items {
		have[a.Metadata.Name] = a.Spec.Checksum
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if have[name] != want[name] {
			return fmt.Errorf("K3s has not applied the manifest %s as it is now; look at: kubectl get events -n kube-system", name)
		}
	}
	return nil
}

// workloads wants each of a namespace rolled out, as 'kubectl rollout status'
// does; a namespace that is missing has none.
func workloads(ctx context.Context, cs *kubernetes.Clientset, ns string) error {
	ds, err := cs.AppsV1().Deployments(ns).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, d := range ds.Items {
		s := d.Status
		if err := rolled(ctx, cs, "deployment", d.ObjectMeta, d.Spec.Selector, s.ObservedGeneration, replicas(d.Spec.Replicas), s.UpdatedReplicas, s.AvailableReplicas, s.Replicas); err != nil {
			return err
		}
	}
	ss, err := cs.AppsV1().StatefulSets(ns).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, d := range ss.Items {
		s := d.Status
		if err := rolled(ctx, cs, "statefulset", d.ObjectMeta, d.Spec.Selector, s.ObservedGeneration, replicas(d.Spec.Replicas), s.UpdatedReplicas, s.ReadyReplicas, s.Replicas); err != nil {
			return err
		}
	}
	return daemons(ctx, cs, ns)
}

func daemons(ctx context.Context, cs *kubernetes.Clientset, ns string) error {
	ds, err := cs.AppsV1().DaemonSets(ns).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, d := range ds.Items {
		s := d.Status
		if d.Spec.UpdateStrategy.Type == appsv1.OnDeleteDaemonSetStrategyType {
			s.UpdatedNumberScheduled = s.DesiredNumberScheduled
		}
		if err := rolled(ctx, cs, "daemonset", d.ObjectMeta, d.Spec.Selector, s.ObservedGeneration, s.DesiredNumberScheduled, s.UpdatedNumberScheduled, s.NumberAvailable, s.CurrentNumberScheduled); err != nil {
			return err
		}
	}
	return nil
}

func replicas(n *int32) int32 {
	if n == nil {
		return 1
	}
	return *n
}

// rolled says what a workload lacks, and why its pods are not ready.
func rolled(ctx context.Context, cs *kubernetes.Clientset, kind string, m metav1.ObjectMeta, sel *metav1.LabelSelector, seen int64, want, updated, available, all int32) error {
	name := fmt.Sprintf("%s %s in %s", kind, m.Name, m.Namespace)
	if seen < m.Generation {
		return errors.New(name + ": its controller has not seen it yet")
	}
	if updated == want && available == want && all == want {
		return nil
	}
	return fmt.Errorf("%s: %d of %d pods are up to date, %d ready%s; look at: kubectl get pods,events -n %s", name, updated, want, available, why(ctx, cs, m.Namespace, sel), m.Namespace)
}

// why collects what the kubelet says about the pods that are not ready.
func why(ctx context.Context, cs *kubernetes.Clientset, ns string, sel *metav1.LabelSelector) string {
	ps, err := cs.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(sel)})
	if err != nil {
		return ": " + err.Error()
	}
	var out []string
	for _, p := range ps.Items {
		if s := podFault(p); s != "" {
			out = append(out, p.Name+": "+s)
		}
	}
	if len(out) == 0 {
		return ""
	}
	return " (" + strings.Join(out, "; ") + ")"
}

// podFault is the first thing that keeps a pod from being ready; "": nothing.
func podFault(p corev1.Pod) string {
	for _, c := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		switch w, t := c.State.Waiting, c.LastTerminationState.Terminated; {
		case w != nil && t != nil:
			return fmt.Sprintf("%s: %s, ended with status %d before", c.Image, w.Reason, t.ExitCode)
		case w != nil:
			return fmt.Sprintf("%s: %s %.300s", c.Image, w.Reason, w.Message)
		case c.State.Running != nil && !c.Ready:
			return c.Image + ": it runs, but does not pass its readiness probe"
		}
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status != corev1.ConditionTrue {
			return fmt.Sprintf("not scheduled: %.300s", c.Message)
		}
	}
	return ""
}
