// Package kube is the little of the Kubernetes API that running agents as pods
// takes: make a pod, look at it, list them, delete one and wait until it is
// gone.
//
//	c, err := kube.Open("/etc/clawbox/cluster.kubeconfig", "clawbox-agents")
//	made, err := c.Create(ctx, &kube.Pod{Metadata: kube.Meta{Name: "openclaw"}, Spec: …})
//	err = c.Delete(ctx, "openclaw", made.Metadata.UID)
//
// The kubeconfig names the server by https, its authority, and a client
// certificate or a bearer token; files that it names are read as well as data
// in it. It is read again whenever it has changed, so that certificates which
// rotate need no restart. One that asks not to verify the server is refused.
//
// k8s.io/client-go does this too, and brings some 40 modules and 15 MB of
// program for four requests of JSON over HTTP; the supervisor is root and its
// code is to be read. Of an answer only the fields below are kept; unknown
// ones are no error, because servers of other versions send other ones.
//
// Limits: no watches (Get is asked again), no retries, one namespace.
package kube
