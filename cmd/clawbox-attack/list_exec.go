package main

// execs try to run what the policy does not list. /bin/other is the attacker's
// program under another name, in the image and in no list.
var execs = []attack{
	{
		name: "unlisted", tries: "run a program of the image that no rule lists", args: []string{"exec", "/bin/other"},
		want: killed("EACCES", "EPERM", "SIGKILL"), records: []record{ran("/bin/other")},
	},
	{
		name: "copy-workspace", tries: "run a copy from the workspace", args: []string{"copy", "/workspace"},
		want: killed("EACCES", "EPERM", "SIGKILL"), records: []record{ran("/workspace/copy")},
	},
	{
		name: "copy-tmp", tries: "run a copy from /tmp", args: []string{"copy", "/tmp"},
		want: killed("EACCES", "EPERM", "SIGKILL"), records: []record{ran("/tmp/copy")},
	},
	{
		name: "copy-shm", tries: "run a copy from /dev/shm", args: []string{"copy", "/dev/shm"},
		want: killed("EACCES", "EPERM", "SIGKILL", "ENOENT", "EROFS"), records: []record{{Path: "/dev/shm/copy"}},
	},
	{
		name: "memfd", tries: "run a program that is in no file", args: []string{"memfd"},
		want: killed("EACCES", "EPERM", "SIGKILL"), records: []record{refused("memfd_create"), {Kind: "exec"}},
	},
	{
		name: "shebang", tries: "run a script of its own by its first line", args: []string{"script"},
		want: killed("EACCES", "EPERM", "SIGKILL"), records: []record{ran("/workspace/s")},
	},
	{
		name: "ld-so", tries: "use the dynamic linker as a loader", args: []string{"exec", "/lib/ld.so", "/bin/other"},
		want: killed("EACCES", "EPERM", "SIGKILL"), records: []record{ran("/lib/ld.so")},
		control: uncontrolled("the program is static, and the linker refuses it; the launch of the linker is the attack"),
	},
	{
		name: "elf-interpreter", tries: "name an unlisted program as dynamic linker", args: []string{"hijack-elf"},
		want: killed("EACCES", "EPERM", "SIGKILL"), records: []record{ran("/workspace/elf")},
		control: uncontrolled("a static program as interpreter of an empty one crashes; that it is loaded is the attack"),
	},
	{
		name: "exec-descriptor", tries: "run it by a descriptor, and by execveat", args: []string{"exec-fd", "/bin/other"},
		want: killed("EACCES", "EPERM", "SIGKILL"), records: []record{{Kind: "exec", Detail: "execve refused"}, {Kind: "exec", Detail: "execveat refused"}},
	},
	{
		name: "exec-thread", tries: "run it from another thread", args: []string{"exec-thread", "/bin/other"},
		want: killed("EACCES", "EPERM"), records: []record{ran("/bin/other")},
	},
	{
		name: "daemon", tries: "leave session and parent twice, then run it", args: []string{"daemon", "/bin/other"},
		want: killed("EACCES", "EPERM"), records: []record{ran("/bin/other")},
	},
	{
		name: "mmap-code", tries: "map code from a file that it wrote", args: []string{"mmap-exec"},
		want: errno("EPERM", "EACCES"), records: []record{refused("mmap")},
	},
	{
		name: "setuid-bit", tries: "run a copy as its owner", args: []string{"setuid-bit"},
		want: killed("EACCES", "EPERM", "SIGKILL"), records: []record{ran("/workspace/su")},
	},
	{
		name: "proc-exe", tries: "run another name of a listed program's copy", args: []string{"exec", "/proc/self/root/bin/other"},
		want: killed("EACCES", "EPERM", "SIGKILL"), records: []record{ran("/bin/other")},
	},
	{
		name: "exec-flood", tries: "start it 400 times from 8 threads at once", args: []string{"exec-flood", "/bin/other", "400"},
		want: killed("EACCES", "EPERM", "SIGKILL", "EAGAIN"), records: []record{ran("/bin/other")},
	},
}
