// Package confine restricts a process before it becomes somebody else's
// program, and does it from data.
//
// Two documents describe everything. A Root says what a sandbox looks like:
// image layers, writable directories, scratch space. A Spec says what one
// process in it may do and what it is: user, limits, Landlock paths, system
// call filter, program. The daemon compiles both from a policy; the launcher
// (cmd/clawbox-launch, which is Main) obeys them and decides nothing.
//
//	daemon                           launcher
//	  | start in new namespaces and
//	  | in the sandbox's cgroups ----> init: PID 1, blocks on fd 3
//	  | Root ------------------------> mounts, pivots
//	  | <------------------- "mounted"
//	  | attach guard, network
//	  | Spec ------------------------> forks; the child confines itself and
//	  |                                becomes the program, PID 1 confines
//	  |                                itself, waits and reaps
//	  | <--------------- end of file   both are confined, the program runs
//
// Go's runtime starts once: the child goes from fork to the program in raw
// system calls (fork.go). So after "mounted" the only programs that start in
// the sandbox are the agent's, and the guard needs no exception.
//
// A process that joins later takes the same last step from a launcher of its
// own: join enters the namespaces and reads the Spec; its child is born in the
// cgroups, waits until the daemon holds a pidfd of it, confines itself and
// becomes the program.
//
// Where a container runtime makes the namespaces, the launcher is the
// container's program, in the mode "pod" (pod.go): the same without a Root.
//
// PID 1 keeps Go's other threads, which have no part in its change of user;
// the system call filter, which all threads get in one call, leaves them
// nothing but to wait, signal and exit. Self confines all threads of a
// program in full; the appliance's services can use it.
//
// The order of commit is fixed by what each step needs: limits and groups while
// still privileged, then the user id, then no capability at all, then
// no_new_privs, then Landlock, and the system call filter last because it
// forbids most of the steps before it. It restricts the calling thread only,
// which then calls execve. Nothing runs on any error.
//
// The system call profiles "default" and "strict" are allow-lists, built by
// Profile from the tables in calls.go and profiles.go, and run in an
// interpreter by the tests.
//
// Limits: amd64 and arm64; Landlock network rights are not used because the
// network namespace has nothing to reach but the appliance; bind mounts are
// of directories only.
package confine
