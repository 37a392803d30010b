package main

// paths try to reach files that are not the agent's. /secret/flag is in the
// image and in no list of the policy: the name can be walked to, and Landlock
// refuses it. $HOST is the appliance's own folder: it does not exist in the
// sandbox's view.

// absent is why an attempt leaves no record: the kernel hides other people's
// processes in /proc (hidepid), and a name that is absent where the policy lets
// the agent look is no refusal.
const absent = "a process that is hidden in /proc is an absent name where the policy lets the agent look"

// forged is a name that would end a line, a string and an object.
const forged = "/secret/x\"}\n{\"class_uid\":1,\"verdict\":\"allowed\",\"x\":\"\u2028\x1b[2J"

var paths = []attack{
	{
		name: "secret-file", tries: "read a file of the image that no rule lists", args: []string{"read", "/secret/flag"},
		want: errno("EACCES"), records: []record{file("/secret/flag")},
	},
	{
		name: "symlink", tries: "reach it by a link, by dots, by /proc/self/root", args: []string{"symlink", "/secret/flag"},
		want: errno("EACCES"), records: []record{file("/workspace/link"), file("/proc/self/root/secret/flag")},
	},
	{
		name: "symlink-race", tries: "swap a link while it is opened, 20,000 times", args: []string{"symlink-race", "/data/good", "/secret/flag"},
		want: errno("EACCES"), records: []record{file("/workspace/race")},
	},
	{
		name: "hardlink", tries: "give the file another name", args: []string{"hardlink", "/secret/flag"},
		want: errno("EXDEV", "EROFS", "EACCES"), records: []record{refused("linkat")},
	},
	{
		name: "o-path", tries: "open it without access, then again by /proc/self/fd", args: []string{"o-path", "/secret/flag"},
		want: errno("EACCES"), records: []record{file("/proc/self/fd/")},
	},
	{
		name: "scm-rights", tries: "pass its descriptor over a socket and open that", args: []string{"scm", "/secret/flag"},
		want: errno("EACCES"), records: []record{file("/proc/self/fd/")},
	},
	{
		name: "file-handle", tries: "open by handle, past every path (shocker)", args: []string{"handle", "/secret/flag"},
		want: errno("EPERM"), records: []record{refused("name_to_handle_at"), refused("open_by_handle_at")},
	},
	{
		name: "ledger-key", tries: "read the ledger's signing key", args: []string{"read", "$HOST/var/lib/clawbox/keys/ledger.key"},
		want: errno("ENOENT", "EACCES"), records: []record{file("/keys/ledger.key")},
	},
	{
		name: "ledger-forge", tries: "append to the ledger", args: []string{"write", "$HOST/var/lib/clawbox/ledger/wal"},
		want: errno("ENOENT", "EACCES"), records: []record{file("/ledger/wal")},
	},
	{
		name: "ledger-inject", tries: "write a record of its own by a file's name", args: []string{"read", forged},
		want: errno("ENOENT", "EACCES"), records: []record{file(forged)},
		control: uncontrolled("no such file; that the record holds the name as it is, is the point"),
	},
	{
		name: "configuration", tries: "change the appliance's configuration", args: []string{"write", "$HOST/etc/clawbox/appliance.yaml"},
		want: errno("ENOENT", "EACCES"), records: []record{file("/etc/clawbox/appliance.yaml")},
	},
	{
		name: "own-policy", tries: "read and change the policy that holds it", args: []string{"write", "$HOST/var/lib/clawbox/agents/prey/policy.yaml"},
		want: errno("ENOENT", "EACCES"), records: []record{file("policy.yaml")},
	},
	{
		name: "neighbour-data", tries: "read another agent's file", args: []string{"read", "$PRIVATE"},
		want: errno("ENOENT", "EACCES"), records: []record{file("$PRIVATE")},
		control: uncontrolled("the neighbour's folder is another mount, which the control's container does not show"),
	},
	{
		name: "neighbour-root", tries: "reach another agent's root by its process", args: []string{"read", "/proc/$OTHERPID/root/workspace/private"},
		want: errno("ENOENT", "EACCES"), silent: absent,
		control: uncontrolled("the control has a process namespace of its own, too"),
	},
	{
		name: "control-socket", tries: "talk to the control socket", args: []string{"list", "$HOST/run/clawbox"},
		want: errno("ENOENT", "EACCES"), records: []record{file("/run/clawbox")},
	},
	{
		name: "root-home", tries: "list the root folder", args: []string{"list", "/"},
		want: errno("EACCES"), records: []record{file("/")},
	},
	{
		name: "plant-program", tries: "write a program into /bin", args: []string{"write", "/bin/backdoor"},
		want: errno("EROFS", "EACCES"), records: []record{file("/bin/backdoor")},
	},
	{
		name: "swap-program", tries: "change a listed program after its first use", args: []string{"replace", "/bin/busybox"},
		want: errno("EROFS", "EACCES", "EPERM"), records: []record{file("/bin/busybox")},
	},
	{
		name: "rename-program", tries: "rename one program over another", args: []string{"rename", "/bin/other", "/bin/sh"},
		want: errno("EROFS", "EACCES", "EXDEV"), records: []record{refused("renameat")},
	},
	{
		name: "truncate", tries: "empty a program", args: []string{"truncate", "/bin/sh"},
		want: errno("EROFS", "EACCES"), records: []record{refused("truncate")},
	},
	{
		name: "sysctl", tries: "set the host's core_pattern", args: []string{"sysctl"},
		want: errno("EROFS", "EACCES"), records: []record{file("/proc/sys/kernel/core_pattern")},
	},
	{
		name: "device-node", tries: "make a device of the host's memory and disk", args: []string{"device"},
		want: errno("EPERM", "EACCES"), records: []record{refused("mknodat")},
	},
	{
		name: "kernel-memory", tries: "read /dev/mem, /dev/kmsg, kallsyms, kernel notes", args: []string{"kernel-memory"},
		want: errno("ENOENT", "EACCES", "ENODATA", "EPERM"), records: []record{file("/sys/kernel/notes")},
	},
	{
		name: "proc-1", tries: "read the launcher's memory and environment", args: []string{"proc-mem"},
		want: errno("EACCES", "EPERM", "ENOENT"), silent: absent,
	},
}
