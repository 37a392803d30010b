// Package vm boots a virtual machine with another kernel, for tests that this
// machine's own kernel cannot run: QEMU without KVM, a Debian kernel, a disk
// made from a folder, and a command channel.
//
//	c := vm.Cache("dist/vm")
//	k, err := c.Kernel(ctx, vm.Kernels[0])     // downloads once, by apt
//	q, err := c.Emulator(ctx)
//	disk, err := c.Disk(ctx, "dist/vm/root")   // an ext4 image of that folder
//	m, err := vm.Start(ctx, vm.Config{Emulator: q, Kernel: k, Disk: disk})
//	defer m.Close()                            // the power cut
//	code, err := m.Run(ctx, vm.Command{Args: []string{"/bin/true"}})
//
// Nothing is installed: packages are fetched by apt-get into folders of the
// cache, with an apt configuration of its own, and unpacked there. apt checks
// each package's SHA-256 against the archive's signed index.
//
// The guest's first process is the program in the folder guest: it loads the
// modules, mounts the disk as root, and serves commands on a virtio-serial
// port. A guest has no network card. What it writes to its disk is lost when
// it ends.
//
// Limits: amd64 on a Debian-like host with apt-get, dpkg-deb, mke2fs, xz and
// Go. KVM is never used: under TCG a guest is 10 to 25 times slower than the
// host, and the same everywhere.
package vm
