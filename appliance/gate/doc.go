// Package gate is the OCI runtime that containerd calls where it would call
// runc: it asks the supervisor whether an agent's container may be, and as
// what, and then becomes runc.
//
//	containerd's shim              clawbox-runc (Main)              supervisor (Serve)
//	  | create --bundle B ID ------> reads B/config.json
//	  |                              Create, with descriptors ------> policy → config.json
//	  |                              <------------------------------- or an error, which is runc's then
//	  |                              writes config.json, executes runc
//	  | start ID ------------------> Start, with a pidfd -----------> guard, cgroup
//	  |                              executes runc
//
// It is what a RuntimeClass's handler names (containerd's runtime options,
// BinaryName), the way NVIDIA's container runtime is, and can be the node's
// default runtime, too. Containers outside the agents' namespace go to runc
// without a question, whoever runs. For one inside, everything that can fail
// means no container: no supervisor, no answer, no readable state. So nothing
// has to be set up for the node to fail closed.
//
// Which namespace a container is of, CRI itself writes into its annotations,
// over whatever a pod says. Running an agent's container anew (run, restore),
// and running more in it (exec: kubectl exec, probes) is refused: it would be
// outside of the agent's Landlock domain and filter.
//
// So is changing its resources (update), which are its policy's budgets.
//
// Settings stand beside the program, in <program>.json; see package settings.
//
// The agent's launcher gets its channels as descriptors 3 to 6 by runc's
// --preserve-fds: they lead to the supervisor, are of no name, and are closed
// before the agent runs.
package gate
