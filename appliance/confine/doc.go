// Package confine restricts a process before it becomes somebody else's
// program, and does it from data.
//
// Two documents describe everything. A Root says what a sandbox looks like:
// image layers, writable directories, scratch space. A Spec says what one
// process in it may do and what it is: user, limits, Landlock paths, system
// call filter, program. The daemon compiles both from a policy; the launcher
// (cmd/clawbox-launch, which is Main) obeys them and decides nothing.
//
//	daemon                         launcher
//	  | start in new namespaces ---> init: blocks on fd 3
//	  | place it in cgroups
//	  | Root (one JSON line) ------> mounts, pivots, starts its child,
//	  |                              confines itself for good
//	  | <----------------- "mounted" supervise: PID 1, reaps
//	  | attach network, guard
//	  | Spec (one JSON line) ------> exec: the child confines itself, execs
//	  | <------------- end of file   the program runs
//
// Every launcher image is in place before "mounted", so from then on the only
// programs that start in the sandbox are the agent's: the guard needs no
// exception for the launcher.
//
// A process that joins later takes the same last step: join enters the
// namespaces, its child blocks until the daemon has put it in the cgroups,
// reads the Spec, confines itself and execs.
//
// Apply's order is fixed by what each step needs: limits and groups while
// still privileged, then the user id, then no capability at all, then
// no_new_privs, then Landlock, and the system call filter last because it
// forbids most of the steps before it. Apply restricts the calling thread
// only, and is correct only if that thread then calls execve, which ends all
// other threads. Nothing runs on any error.
//
// The system call profiles "default" and "strict" are allow-lists, built by
// Profile from the tables in calls.go and run in an interpreter by the tests.
//
// Limits: amd64 and arm64; Landlock network rights are not used because the
// network namespace has nothing to reach but the appliance; bind mounts are
// of directories only.
package confine
