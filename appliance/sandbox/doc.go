// Package sandbox runs agents: it turns a policy and an image into a
// confine.Root and a confine.Spec, and accompanies the launcher that obeys
// them from its start to the removal of its last cgroup.
//
//	images, err := sandbox.OpenImages(state, store) // content.Store
//	local, err := sandbox.Open(sandbox.Options{State: state, Launcher: "/…/clawbox-launch", UIDBase: 600000})
//	img, err := images.Prepare(ctx, "openclaw")
//	box, err := local.Start(ctx, sandbox.Spec{
//		Name: "openclaw-1", Image: img, Policy: policy, Stdout: log, Stderr: log,
//		Guard:   func(s guard.Scope) (io.Closer, error) { return g.Watch(s) },
//		Network: func(ctx context.Context, _ int, ns *os.File) (io.Closer, error) { return proxy.Attach(ctx, agent, ns) },
//		Event:   func(e sandbox.Event) { /* ledger */ },
//	})
//	code, why := box.Wait()
//
// What an agent finds: the image, read-only; its writable folders, which
// survive; /tmp in memory; its own processes; a loopback interface. It runs
// under a user id of its own that no one else on the host has.
//
// How a policy's words become the kernel's:
//
//   - filesystem.read: Landlock read below the path, links resolved inside the
//     image. A path that the image lacks is no error, because a preset names
//     the folders of several distributions; Box.Notes lists it.
//   - filesystem.write: a folder of the host, one per path, owned by the
//     agent's user, nosuid, nodev and noexec. It begins empty: what the image
//     has there is hidden. /tmp and /dev/shm are memory, bounded.
//   - process.exec: Landlock execute, and the inode for the guard. The entry
//     point and its "#!" interpreter are always in. An ELF interpreter gets
//     Landlock's right, which the kernel asks for, but is not in the guard's
//     list: run directly it would load any file that can be read.
//   - process.spawn false: system call profile "strict".
//     A program with a pinned content is read and compared before each start.
//   - process.user, group, capabilities: the agent's own ids, or those named;
//     no capability but those named, which are the host's: there is no user
//     namespace.
//   - budgets: cgroups (tasks, memory, cpu), tmpfs size, rlimit, a timer. disk
//     and inodes: a file system of the agent's own, see disk.go. diskRead and
//     diskWrite: cgroup v2's io.max, refused where there is none. Open files
//     are bounded per process, and so by openFiles × processes in all. What an
//     agent prints passes at 4 MiB a second at most.
//
// On disk, below the state directory: layers/<diff id> (unpacked once, shared,
// complete if present), agents/<name>/files/<path> (what the agent wrote, or
// where its disk is mounted), agents/<name>/disk.img and disk.size,
// agents/<name>/snapshots/<name>/, agents/<name>/skeleton-<key> (the topmost
// layer; made anew in every life of a daemon), uids.json, sandbox.lock. In each
// cgroup hierarchy in use: clawbox-<hash of the state directory>/<name>-<random>.
//
// Snapshots. Snapshot copies the image of the agent's disk: by reference where
// the host's file system shares blocks (XFS, btrfs), and else block by block,
// first while the agent works on, and then what has changed since, while its
// file system is held still (FIFREEZE). Only writes wait, and only for that.
// Being one file system image, it keeps whatever the agent made: hard links,
// holes, attributes, odd names. Restore puts a copy in the place of the disk by
// one rename. Both are whole or not at all, whenever the machine stops.
//
// Start time. Most of a start does not depend on whose it is: with
// Options.Warm, launchers wait that have done it, each born in its cgroups
// (moving a process waits for a grace period of RCU), with its own mounts and,
// by Options.Ahead, its network. One takes some 1 MB of memory and serves one
// start. It sees nothing of any agent: it lets go of their disks, and the
// folders of its own come with the confine.Root. What a policy becomes in an
// image is kept (known.go). BenchmarkStartSteps shows each step,
// BenchmarkAgainstBubblewrap the whole beside bubblewrap's. The first start of
// an agent with a disk makes it, which takes some 20 ms more and no room to
// speak of.
//
// Pods (OpenPods) starts the same Box as a pod of a K3s node: Kubernetes and
// runc make the namespaces, this package decides what is in them, through the
// gate (package gate, docs/architecture.md). Disk, user id, budgets, guard,
// network, joining, snapshots and end are one code. What a pod lacks: the
// pid namespace's memfd_noexec; a root that is read-only as a file system, and
// not just as a mount; and an agent can read in its mountinfo where containerd
// keeps the image.
//
// When the daemon dies its sandboxes die: the launcher watches a socket and
// has the kernel's parent death signal besides. Open removes what is left.
//
// Limits. Without budgets.disk or budgets.inodes the size of writable folders is
// not bounded, which Box.Notes says, and there are no snapshots. A disk is a
// sparse file: where the host's own disk is full, the agent's becomes
// read-only. An agent can read in
// /proc/self/mountinfo where on the host they lie, not go there. Where no guard runs
// (tier T4), an ELF interpreter can run any program of the image that the
// policy lets the agent read; it can never run what the agent wrote. A
// program that joins by Exec is in a Landlock domain beside the agent's, so
// neither can see or signal the other.
package sandbox
