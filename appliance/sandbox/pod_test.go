package sandbox

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/clawbox/clawbox/appliance/gate"
	"github.com/clawbox/clawbox/appliance/guard"
	"github.com/clawbox/clawbox/appliance/kube"
)

// TestPod is an agent's whole life as a pod, under the real guard.
func TestPod(t *testing.T) {
	b, n := onNode(t)
	g := loadGuard(t)
	var scopes []guard.Scope
	var w *guard.Watch
	watch := func(s guard.Scope) (_ io.Closer, err error) {
		scopes = append(scopes, s)
		s.Violation = guard.Kill
		if w != nil {
			return w, w.Update(s)
		}
		w, err = g.Watch(s)
		return w, err
	}
	p := policy()
	p.Require.Tier = "T3"
	p.Process.Exec = []string{"/bin/probe"}
	box, out := b.start(Spec{Name: "one", Policy: p, Guard: watch}, "print=on", "links", "env=SECRET", "exec=/tools/one print=x", "sleep=60")
	await(t, "agent", func() bool { return strings.Contains(out.String(), "/tools/one") })
	got := answers(out.String())
	if got["links"] != "ok lo:loopback" || got["env=SECRET"] != "ok" {
		t.Errorf("inside: %v", got)
	}
	if len(scopes) != 2 || len(scopes[0].Exec) != 1 || !scopes[0].NoRefusals || scopes[1].NoRefusals || scopes[0].CgroupID != scopes[1].CgroupID || scopes[0].Exec[0] == scopes[1].Exec[0] {
		t.Errorf("scopes: %+v; want the launcher alone, then the agent's programs", scopes)
	}
	if st, err := box.Stats(); err != nil || st.Tasks == 0 || st.Memory == 0 {
		t.Errorf("stats: %+v, %v", st, err)
	}
	var said buffer
	if code, err := box.Exec(t.Context(), ExecSpec{Args: []string{"/bin/probe", "status=Seccomp,CapBnd"}, Stdout: &said}); code != 0 || err != nil || !strings.Contains(said.String(), "CapBnd=0000000000000000 Seccomp=2") {
		t.Errorf("connect: %d, %v, %s", code, err, &said)
	}
	id := "agent-" + n.names()[0]
	if err := n.call("exec", "--detach", "--process", "/dev/null", id); err == nil || !strings.Contains(err.Error(), "agent connect") {
		t.Errorf("kubectl exec: %v; want a refusal", err)
	}
	if err := n.call("start", id); err == nil {
		t.Error("a container starts twice")
	}
	// Kubernetes deletes it: the agent is asked first.
	if err := n.call("kill", id, "15"); err != nil && !strings.Contains(err.Error(), "container not running") { // it was faster
		t.Error(err)
	}
	if code, why := box.Wait(); code != 128+15 || why != "stopped by Kubernetes" || box.err != nil {
		t.Errorf("end: %d, %s, %v; output %s", code, why, box.err, out)
	}
	if left := n.names(); len(left) != 0 {
		t.Errorf("pods are left: %v", left)
	}
	if _, err := b.pods.Start(t.Context(), Spec{Name: "one", Policy: p, Guard: watch, Image: b.image, Args: []string{"exit=7"}}); err == nil {
		t.Log("a second start follows the first")
	}
}

// TestPodStatus: what the agent's program ends with is what is told.
func TestPodStatus(t *testing.T) {
	b, _ := onNode(t)
	if _, code, why := b.run(Spec{}, "print=a", "exit=7"); code != 7 || why != "exited with status 7" {
		t.Errorf("got %d, %s", code, why)
	}
	box, _ := b.start(Spec{}, "sleep=60")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	began := time.Now()
	if err := box.Stop(ctx, 10*time.Second); err != nil {
		t.Error(err)
	}
	if code, _ := box.Wait(); code != 128+15 {
		t.Errorf("after SIGTERM: %d, %v", code, time.Since(began))
	}
}

// TestPodRefused: what is not as this appliance asked for it does not run, and
// nothing is left of it.
func TestPodRefused(t *testing.T) {
	b, n := onNode(t)
	var told []string
	b.pods.o.Refused = func(why string) { told = append(told, why) }
	drop := func(t specs.LinuxNamespaceType) func(*specs.Spec) {
		return func(s *specs.Spec) {
			s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == t })
		}
	}
	rows := map[string]func(*specs.Spec){
		"host's network": drop("network"),
		"host's pid":     drop("pid"),
		"host's ipc":     drop("ipc"),
		"host's mount":   drop("mount"),
		"its image is":   func(s *specs.Spec) { s.Annotations[gate.ImageOf] = "127.0.0.1:5000/other@sha256:" + b.image.Digest.Hex },
		"a mount at /var": func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/var/lib", Source: "/var/lib"})
		},
		"a mount at /var/run/secrets": func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/var/run/secrets/kubernetes.io/serviceaccount"})
		},
		"the device /dev/kvm": func(s *specs.Spec) { s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/kvm", Type: "c"}} },
		"user namespace": func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		},
		"shares the pid": func(s *specs.Spec) {
			s.Linux.Namespaces = append([]specs.LinuxNamespace{{Type: specs.PIDNamespace, Path: "/proc/1/ns/pid"}}, drop2(s, "pid")...)
		},
		"network namespace": func(s *specs.Spec) {
			s.Linux.Namespaces = append([]specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: "/proc/self/ns/net"}}, drop2(s, "network")...)
		},
		"none that this appliance": func(s *specs.Spec) { s.Annotations[gate.PodOf] = "another" },
		"is of kind":               func(s *specs.Spec) { s.Annotations[gate.KindOf] = "x" },
		"gets no other":            func(s *specs.Spec) { s.Annotations[gate.KindOf] = gate.Sandbox },
	}
	for want, asks := range rows {
		n.asks = asks
		_, err := b.pods.Start(t.Context(), Spec{Name: "no", Policy: policy(), Image: b.image, Args: []string{"print=ran"}})
		if err == nil || !n.heard(want) && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, %q", want, err, n.said)
		}
		if left := n.names(); len(left) != 0 {
			t.Errorf("%s: pods are left: %v", want, left)
		}
	}
	if len(told) < len(rows)-1 { // the network's is found at the start
		t.Errorf("%d of %d refusals were told: %q", len(told), len(rows), told)
	}
	p := policy()
	p.Require.Features = []string{"memfd-noexec"}
	if _, err := b.pods.Start(t.Context(), Spec{Name: "no", Policy: p, Image: b.image}); err == nil || !strings.Contains(err.Error(), "memfd-noexec") {
		t.Errorf("a feature that pods lack: %v", err)
	}
}

// drop2 are s's namespaces but one.
func drop2(s *specs.Spec, t specs.LinuxNamespaceType) []specs.LinuxNamespace {
	return slices.DeleteFunc(slices.Clone(s.Linux.Namespaces), func(n specs.LinuxNamespace) bool { return n.Type == t })
}

// TestPodAlone: without the supervisor, or without its guard, no container is
// made; what is not an agent's goes to runc all the same.
func TestPodAlone(t *testing.T) {
	b, n := onNode(t)
	broken := errors.New("the guard does not run")
	p := policy()
	if _, err := b.pods.Start(t.Context(), Spec{Name: "no", Policy: p, Image: b.image, Guard: func(guard.Scope) (io.Closer, error) { return nil, broken }}); !errors.Is(err, broken) {
		t.Errorf("without a guard: %v", err)
	}
	n.stop()
	if _, err := b.pods.Start(t.Context(), Spec{Name: "no", Policy: p, Image: b.image}); err == nil || !n.heard("no agent runs without its supervisor") {
		t.Errorf("without a supervisor: %v", err)
	}
	stranger := &kube.Pod{Metadata: kube.Meta{Name: "web", UID: "web"}, Spec: kube.PodSpec{Containers: []kube.Container{{}}}}
	n.namespace = "default"
	t.Cleanup(func() { n.Delete(context.Background(), "web", "web") })
	n.pods["web"] = stranger
	if err := n.sandbox(stranger); err != nil {
		t.Errorf("a pod of another namespace: %v", err)
	}
	if err := n.call("exec", "hold-web", "/bin/probe", "print=x"); err != nil {
		t.Errorf("exec in a pod of another namespace: %v", err)
	}
}

// TestPodOrphan: when the supervisor goes, its agents do.
func TestPodOrphan(t *testing.T) {
	b, _ := onNode(t)
	box, _ := b.start(Spec{}, "sleep=60")
	box.p.control.Close() // as the end of the process does
	if code, _ := box.Wait(); code != 128+9 {
		t.Errorf("the launcher ended with %d", code)
	}
}

// TestPodSweep deletes what a daemon that died has left.
func TestPodSweep(t *testing.T) {
	b, n := onNode(t)
	for name, owner := range map[string]string{"old": b.pods.owner, "other": "another node's"} {
		n.pods[name] = &kube.Pod{Metadata: kube.Meta{Name: name, UID: name, Labels: map[string]string{ownerLabel: owner}}}
	}
	if err := b.pods.Sweep(t.Context()); err != nil || !slices.Equal(n.names(), []string{"other"}) {
		t.Errorf("%v; left: %v", err, n.names())
	}
}
