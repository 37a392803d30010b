package main

// elsewhereNoSuch is why signals to the host's processes have no control.
const elsewhereNoSuch = "the control has a process namespace of its own; without it, it would end this run"

// kernelCalls try interfaces of the kernel that an agent has no use for. Each
// is refused with EPERM by the filter, or without a capability by the kernel.
var kernelCalls = []attack{
	{name: "unshare", tries: "make a namespace", args: []string{"unshare"}, want: errno("EPERM"), records: []record{refused("unshare")}},
	{name: "clone-user", tries: "start a child in a user namespace, and others", args: []string{"clone-user"}, want: errno("EPERM"), records: []record{refused("clone")}},
	{
		name: "clone3", tries: "the same by clone3, whose flags no filter sees", args: []string{"clone3"}, want: errno("ENOSYS", "EPERM"),
		silent: "the filter answers as a kernel without it would, so that C libraries use clone, which is seen",
	},
	{name: "setns", tries: "enter a namespace", args: []string{"setns"}, want: errno("EPERM"), records: []record{refused("setns")}},
	{name: "ptrace", tries: "trace the launcher and a child", args: []string{"ptrace"}, want: errno("EPERM"), records: []record{refused("ptrace")}},
	{name: "process-vm", tries: "read and write another process's memory", args: []string{"vm-write"}, want: errno("EPERM"), records: []record{refused("process_vm_readv"), refused("process_vm_writev")}},
	{name: "pidfd-getfd", tries: "take another process's descriptor", args: []string{"pidfd-getfd"}, want: errno("EPERM"), records: []record{refused("pidfd_getfd")}},
	{name: "kcmp", tries: "compare kernel objects of processes", args: []string{"kcmp"}, want: errno("EPERM"), records: []record{refused("kcmp")}, control: unless("ENOSYS")},
	{name: "keyctl", tries: "use the kernel's key rings", args: []string{"keyctl"}, want: errno("EPERM"), records: []record{refused("add_key"), refused("keyctl"), refused("request_key")}, control: unless("ENOSYS")},
	{name: "bpf", tries: "make a BPF map", args: []string{"bpf"}, want: errno("EPERM"), records: []record{refused("bpf")}},
	{name: "io-uring", tries: "open an io_uring, past every filter of calls", args: []string{"io-uring"}, want: errno("EPERM"), records: []record{refused("io_uring_setup")}, control: unless("ENOSYS")},
	{name: "perf", tries: "open a performance counter", args: []string{"perf"}, want: errno("EPERM"), records: []record{refused("perf_event_open")}, control: unless("ENOSYS")},
	{name: "userfaultfd", tries: "stop the kernel inside a copy", args: []string{"userfaultfd"}, want: errno("EPERM"), records: []record{refused("userfaultfd")}, control: unless("ENOSYS")},
	{name: "bind-mount", tries: "bind a folder over another", args: []string{"mount"}, want: errno("EPERM"), records: []record{refused("mount")}},
	{name: "mount-api", tries: "mount by fsopen and fsmount", args: []string{"mount-api"}, want: errno("EPERM"), records: []record{refused("fsopen")}},
	{name: "open-tree", tries: "clone a mount by open_tree", args: []string{"open-tree"}, want: errno("EPERM"), records: []record{refused("open_tree")}},
	{name: "remount", tries: "take noexec from the workspace", args: []string{"remount"}, want: errno("EPERM"), records: []record{refused("mount"), refused("mount_setattr")}},
	{name: "pivot-root", tries: "change the root", args: []string{"pivot-root"}, want: errno("EPERM"), records: []record{refused("pivot_root")}, control: uncontrolled("the control stands in a chroot, where nobody may pivot")},
	{name: "chroot", tries: "chroot out", args: []string{"chroot"}, want: errno("EPERM"), records: []record{refused("chroot")}},
	{name: "unmask-proc", tries: "unmount /proc's masks", args: []string{"umount-mask"}, want: errno("EPERM"), records: []record{refused("umount2")}},
	{name: "cgroup-mount", tries: "mount the cgroups, to leave its own", args: []string{"cgroup-mount"}, want: errno("EPERM"), records: []record{refused("mount")}},
	{name: "setuid-0", tries: "become root by setuid, setresgid, setgroups", args: []string{"setuid"}, want: errno("EPERM"), records: []record{refused("setuid"), refused("setresgid"), refused("setgroups")}},
	{name: "capset", tries: "give itself capabilities", args: []string{"capset"}, want: errno("EPERM"), records: []record{refused("capset")}},
	{name: "ambient", tries: "raise an ambient capability", args: []string{"ambient"}, want: errno("EPERM"), records: []record{refused("prctl")}, control: uncontrolled("root's inheritable set is empty in the control, too")},
	{name: "seccomp-listener", tries: "put a filter of its own over the system calls", args: []string{"seccomp"}, want: errno("EPERM"), records: []record{refused("seccomp")}},
	{name: "modules", tries: "load a module and another kernel", args: []string{"module"}, want: errno("EPERM"), records: []record{refused("init_module"), refused("kexec_load")}, control: unless("ENOSYS")},
	{name: "reboot", tries: "change what Ctrl-Alt-Del does", args: []string{"reboot"}, want: errno("EPERM"), records: []record{refused("reboot")}, control: uncontrolled("it would change this host")},
	{name: "clock", tries: "set the clock", args: []string{"clock"}, want: errno("EPERM"), records: []record{refused("clock_settime")}},
	{name: "kernel-log", tries: "read the kernel's log", args: []string{"syslog"}, want: errno("EPERM"), records: []record{refused("syslog")}},
	{name: "hostname", tries: "rename the host", args: []string{"hostname"}, want: errno("EPERM"), records: []record{refused("sethostname")}},
	{name: "priority", tries: "run before everything else", args: []string{"priority"}, want: errno("EPERM", "EACCES"), records: []record{refused("setpriority"), refused("sched_setscheduler")}, control: uncontrolled("cgroup v1 refuses real time without a share, whoever asks")},
	{name: "rlimit", tries: "raise its own hard limit", args: []string{"rlimit"}, want: errno("EPERM"), records: []record{refused("prlimit64")}},
	{name: "tiocsti", tries: "type into the operator's terminal", args: []string{"tiocsti"}, want: errno("EPERM"), records: []record{refused("ioctl")}, control: uncontrolled("it would type into the terminal of who runs this")},
	{name: "memfd-secret", tries: "hide memory from the kernel", args: []string{"memfd-secret"}, want: errno("EPERM"), records: []record{refused("memfd_secret")}, control: unless("ENOSYS")},
	{name: "fanotify", tries: "watch and hold other's file accesses", args: []string{"fanotify"}, want: errno("EPERM"), records: []record{refused("fanotify_init")}, control: unless("ENOSYS")},
	{name: "swap", tries: "add swap space", args: []string{"swap"}, want: errno("EPERM"), records: []record{refused("swapon")}, control: unless("ENOSYS")},
	{name: "spawn", tries: "start a process where the policy lets it have one only", agent: lone, args: []string{"clone-user"}, want: errno("EPERM"), records: []record{refused("clone")}},
	{name: "strict-calls", tries: "netlink and System V memory under the strict profile", agent: lone, args: []string{"socket", "nl-route"}, want: errno("EPERM"), records: []record{refused("socket")}},
	{
		name: "x32", tries: "call by another ABI's numbers", args: []string{"x32"}, want: want{killed: true, errnos: []string{"SIGSYS", "EPERM", "ENOSYS"}},
		records: []record{{Kind: "kernel"}}, control: unless("ENOSYS"),
	},
	{name: "kill-daemon", tries: "kill the appliance that governs it", args: []string{"kill", "$DAEMON", "1"}, want: errno("ESRCH", "EPERM"), records: []record{refused("kill")}, control: uncontrolled(elsewhereNoSuch)},
	{name: "stop-daemon", tries: "stop it, so that nothing is recorded", args: []string{"stop", "$DAEMON"}, want: errno("ESRCH", "EPERM"), records: []record{refused("kill")}, control: uncontrolled(elsewhereNoSuch)},
	{name: "kill-services", tries: "kill the guard, the ledger and the other services", args: []string{"kill", "$SERVICES"}, want: errno("ESRCH", "EPERM"), records: []record{refused("kill")}, control: uncontrolled(elsewhereNoSuch)},
	{name: "kill-neighbour", tries: "kill another agent", args: []string{"kill", "$OTHERPID"}, want: errno("ESRCH", "EPERM"), records: []record{refused("kill")}, control: uncontrolled(elsewhereNoSuch)},
	{name: "kill-launcher", tries: "signal the launcher and the agent's own first process", args: []string{"signal-any", "1", "2"}, want: errno("ESRCH", "EPERM"), records: []record{refused("kill")}, control: uncontrolled(elsewhereNoSuch)},
}
