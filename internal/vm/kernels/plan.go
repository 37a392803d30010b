package main

// suite is one package whose tests run in the guests.
type suite struct {
	pkg string
	// Tests that cannot run in a guest, each with the reason. They run on the
	// host with `make test`.
	not map[string]string
	// quick are the tests of -quick, as in go test -run: those that fail first
	// when a kernel takes a program differently. Without any the package is left
	// out.
	quick string
	// Programs of this repository that the tests start; a guest has no Go.
	programs []string
}

var suites = []suite{
	{pkg: "appliance/guard", quick: "TestTiers|TestExec|TestRefused|TestFull|TestOpened|TestSteer"},
	{pkg: "appliance/confine", not: map[string]string{
		"TestTables": "compares with x/sys's source, and a guest has no Go; the same on every kernel",
	}},
	{pkg: "appliance/sandbox", quick: "TestGuarded|TestInside", programs: []string{"cmd/clawbox-launch", "appliance/sandbox/testdata/probe"}},
	{pkg: "appliance/egress"},
}

// boot is one way to start a kernel.
type boot struct {
	name    string
	cmdline string
	want    string            // the guard's tier that must be reached
	only    map[string]string // packages, with the tests as in go test -run; nil: all
}

// tests says which of a package's tests run under a boot, as in go test -run.
func (o options) tests(b boot, s suite) string {
	switch {
	case o.run != "":
		return o.run
	case o.quick && b.only[s.pkg] == "":
		return s.quick
	}
	return b.only[s.pkg]
}

// boots are the two tiers that this machine's own kernel may lack. Debian's
// default list of security modules has bpf; without it BPF LSM programs load
// and enforce nothing, so the guard must find another way. What depends on the
// kernel, but on no tier, has run as shipped.
var boots = []boot{
	{name: "as shipped", want: "T1"},
	{name: "no bpf in lsm=", cmdline: "lsm=landlock,lockdown,yama,integrity,apparmor", want: "T2", only: map[string]string{"appliance/guard": "", "appliance/sandbox": "TestGuarded|TestLoader"}},
}

// modules are what the tests use beside a disk and the command channel. A
// Debian host would load them by itself.
var modules = []string{"overlay", "loop", "xfs", "dummy", "veth", "vsock", "vsock_loopback", "inet_diag", "tcp_diag", "unix_diag", "nf_tables"}

// prober says what a kernel gives, in every guest.
const prober = "internal/vm/kernels/probe"

// lent are programs of the host that tests start. One that the host lacks is
// missing in the guest, too, and the tests that want it say so.
var lent = []string{
	"bash", "busybox", "curl", "find", "git", "head", "ip", "ldd", "losetup", "mke2fs", "mkfs.ext4", "mkfs.xfs", "mount", "resize2fs", "e2fsck", "tune2fs", "xfs_growfs", "touch", "true", "umount", "xfs_quota",
}

// files are what a Debian host has in /etc.
var files = map[string]string{
	"etc/passwd":        "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
	"etc/group":         "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
	"etc/hosts":         "127.0.0.1 localhost guest\n::1 localhost\n",
	"etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
	"etc/resolv.conf":   "",
	"etc/hostname":      "guest\n",
}
