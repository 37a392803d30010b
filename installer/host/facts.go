// Package host gathers what an installer has to know about this machine:
// kernel features, memory, disks and their measured speed, addresses in use,
// GPUs, earlier installations.
//
//	f := host.Gather("/")           // an ordinary host
//	f := host.Gather("/srv/box")    // everything below a prefix
//	if why, failed := f.Failed["landlock"]; failed { … }
//
// Gather only looks: it creates nothing that has a name (the disk's speed is
// measured on an unnamed O_TMPFILE file), loads nothing that stays, and opens no
// connection. It runs one program, nvidia-smi, and only where NVIDIA's driver is
// loaded. A probe that cannot tell leaves its zero value and its reason in
// Failed, so that "no" and "don't know" stay apart.
//
// Facts is plain data with a JSON form: a receipt keeps it, and tests hand
// made-up machines to the code that judges them. This package judges nothing.
//
// GPUs are found by their PCI class and vendor, and the driver by its files in
// /proc, so that a machine whose driver is missing is described too. What only
// the driver knows (memory, MIG, ECC) is asked of NVML: by go-nvml where this
// package was built with cgo and the tag nvml, else by nvidia-smi, which is NVML's own front end
// and comes with the driver. The product is one static program without cgo, so
// it takes the second way.
//
// Limits: BPF is probed by loading and dropping minimal programs; whether what
// they say is enforced is for the guard's own self-test at start. Rules of
// nftables are not read, only whether a firewall service is enabled.
package host

import "time"

// Facts is one machine at one moment. Sizes are bytes.
type Facts struct {
	Time     time.Time `json:"time"`
	Hostname string    `json:"hostname"`
	Root     string    `json:"root"` // the prefix that Disk, Earlier and such are about
	UID      int       `json:"uid"`  // effective user id of the installer
	OS       OS        `json:"os"`
	Arch     string    `json:"arch"` // as Go names it: amd64, arm64
	CPUs     int       `json:"cpus"`
	Memory   Memory    `json:"memory"`

	Kernel     Kernel   `json:"kernel"`
	LSM        []string `json:"lsm"`      // active security modules, in order
	SELinux    string   `json:"selinux"`  // "", "permissive" or "enforcing"
	Landlock   int      `json:"landlock"` // ABI version, 0 when absent
	Seccomp    bool     `json:"seccomp"`  // filters with KILL_PROCESS
	Namespaces []string `json:"namespaces"`
	UserNS     int      `json:"userNamespaces"` // how many root may make
	Overlay    bool     `json:"overlay"`
	Cgroup     Cgroup   `json:"cgroup"`
	BPF        BPF      `json:"bpf"`
	FIPS       bool     `json:"fips"`

	Systemd   bool     `json:"systemd"` // systemd is the running init
	ClockSync bool     `json:"clockSync"`
	Routes    []string `json:"defaultRoutes"` // interfaces with a default route
	Listening []string `json:"listening"`     // TCP addresses in use, address:port
	UIDs      []Range  `json:"uids"`          // user ids from 1000 on that passwd and subuid give away

	Disk    Disk    `json:"disk"`
	GPUs    []GPU   `json:"gpus"`
	NVIDIA  string  `json:"nvidiaDriver"` // first line of the driver's version file
	NVLink  NVLink  `json:"nvlink"`
	Earlier Earlier `json:"earlier"`

	Options  map[string]string `json:"kernelOptions"` // CONFIG_ names without the prefix → "y" or "m"; those of KernelOptions only
	Modules  map[string]string `json:"modules"`       // those of KernelModules → "loaded", "loadable" or ""
	Sysctls  map[string]string `json:"sysctls"`       // those of WantedSysctls; absent: the kernel has none
	ProcRW   bool              `json:"sysctlsWritable"`
	Lockdown string            `json:"lockdown"` // "none", "integrity", "confidentiality", or "" without the module
	Secure   bool              `json:"secureBoot"`
	AppArmor bool              `json:"apparmor"`

	Swap      []string          `json:"swap"`      // devices and files in use
	Networks  []Network         `json:"networks"`  // IPv4 prefixes with a route, without the default
	Addresses []string          `json:"addresses"` // IPv4 addresses of this host, loopback left out
	Names     Names             `json:"names"`
	Firewalls []string          `json:"firewalls"` // services that filter, such as ufw
	Tools     map[string]string `json:"tools"`     // those of Tools → where they are
	MachineID string            `json:"machineID"`
	Resource  bool              `json:"sysResource"` // this process has CAP_SYS_RESOURCE
	Kmsg      bool              `json:"kmsg"`        // /dev/kmsg is there
	Shared    bool              `json:"shared"`      // mounts below / propagate
	Places    map[string]Place  `json:"places"`      // file systems of PlacePaths
	Others    []Other           `json:"neighbours"`  // other container systems' traces

	// MediaRead is the measured speed of the media in bytes per second; the
	// caller, who knows the media, fills it with ReadRate. 0: not measured.
	MediaRead int64 `json:"mediaRead"`

	// Failed holds the reason for each probe that could not tell.
	Failed map[string]string `json:"failed"`
}

// OS is from os-release.
type OS struct {
	ID      string `json:"id"`
	Version string `json:"version"`
	Pretty  string `json:"pretty"`
}

// Memory in bytes.
type Memory struct {
	Total     int64 `json:"total"`
	Available int64 `json:"available"`
}

// Kernel is the running kernel.
type Kernel struct {
	Release string `json:"release"`
	Major   int    `json:"major"`
	Minor   int    `json:"minor"`
}

// AtLeast says whether the kernel is major.minor or newer.
func (k Kernel) AtLeast(major, minor int) bool {
	return k.Major > major || k.Major == major && k.Minor >= minor
}

// Cgroup says how this host groups processes.
type Cgroup struct {
	Version     string   `json:"version"` // "v1", "hybrid" or "v2"
	Controllers []string `json:"controllers"`
	Unified     string   `json:"unified"` // where cgroup2 is mounted, or empty
}

// BPF says which programs the kernel takes from this process.
type BPF struct {
	Tracepoint bool `json:"tracepoint"` // tp_btf on sched_process_exec
	CgroupSock bool `json:"cgroupSock"`
	SkLookup   bool `json:"skLookup"`
	LSM        bool `json:"lsm"` // loads; enforces only where "bpf" is in LSM too
	BTF        bool `json:"btf"`
}

// Tier is the strongest guard tier that the probes make likely, "T3" or "T4";
// the guard's self-test at start has the last word, also on whether it is T1 or T2.
func (b BPF) Tier() string {
	if b.Tracepoint && b.CgroupSock && b.SkLookup && b.BTF {
		return "T3"
	}
	return "T4"
}

// Disk is the file system that will hold the store and the state.
type Disk struct {
	Path     string        `json:"path"` // the folder probed: the nearest that exists
	FSType   string        `json:"fsType"`
	Options  []string      `json:"options"` // mount options
	Free     int64         `json:"free"`    // bytes that root may use
	Inodes   int64         `json:"inodes"`  // free inodes; -1 where the file system has no count
	Write    int64         `json:"write"`   // measured, bytes per second, fsync included
	Fsync    time.Duration `json:"fsync"`   // measured, median of a 4 KiB write and fsync, ns in JSON
	Existing bool          `json:"existing"`
}

// GPU is a display controller of NVIDIA's, found on the PCI bus. The fields
// after Driver are NVML's and zero where it could not be asked (Failed["nvml"]).
type GPU struct {
	Address string `json:"address"` // such as 0000:01:00.0
	Device  string `json:"device"`  // PCI device id, such as 0x2330
	Driver  string `json:"driver"`  // bound kernel driver, or empty

	Model  string `json:"model,omitempty"`  // such as NVIDIA H100 80GB HBM3
	Memory int64  `json:"memory,omitempty"` // bytes
	MIG    bool   `json:"mig,omitempty"`    // split into instances
	ECC    bool   `json:"ecc,omitempty"`    // error correction is on
	Errors int64  `json:"errors,omitempty"` // uncorrected memory errors since boot
}

// NVLink says what joins GPUs: boards with NVSwitch need the fabric manager.
type NVLink struct {
	Switches int  `json:"switches"`
	Manager  bool `json:"fabricManager"` // it runs
}

// Network is a prefix that an interface leads to.
type Network struct {
	Prefix string `json:"prefix"` // such as 10.0.2.0/24
	Iface  string `json:"iface"`
	Via    string `json:"via,omitempty"` // the gateway; "": on the link itself
}

// Names says how this host finds itself by name.
type Names struct {
	Self     []string `json:"self"`     // addresses that /etc/hosts gives the hostname
	Fallback bool     `json:"fallback"` // nsswitch.conf has myhostname
}

// Place is the file system at a path, or at the nearest folder above it.
type Place struct {
	FSType  string   `json:"fsType"`
	Options []string `json:"options"`
	Size    int64    `json:"size"` // bytes
	Free    int64    `json:"free"`
}

// Other is a trace of another container system.
type Other struct {
	What string `json:"what"` // such as docker
	Path string `json:"path"`
}

// Range is a run of user ids and who has it.
type Range struct {
	First int64  `json:"first"`
	Count int64  `json:"count"`
	Owner string `json:"owner"`
}

// Earlier is what an installation under the prefix left.
type Earlier struct {
	Config  bool `json:"config"`  // etc/clawbox/appliance.yaml
	Journal bool `json:"journal"` // an installer has run
	Active  bool `json:"active"`  // opt/clawbox/current points somewhere
	// Stored is how many bytes of blobs the store has already.
	Stored int64 `json:"stored"`
}
