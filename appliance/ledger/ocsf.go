package ledger

import "strconv"

// The mapping to OCSF 1.6.0 (https://schema.ocsf.io/1.6.0): which class each
// kind is, and where each of a Record's fields goes.
//
// What has no place in a class goes to its "unmapped" object. metadata.event_code
// always holds the kind, metadata.log_version the version of this mapping.
const (
	ocsfVersion = "1.6.0"
	logVersion  = "1"
)

// class is one OCSF event class as we use it.
type class struct {
	uid        int
	category   int
	activity   int            // when nothing in activities fits
	activities map[string]int // by attribute "op", else last word of the reason, else verdict
	severity   int            // 0: by the verdict
	paths      map[field]string
	derive     []leaf // attributes that the class requires and that follow from the others
}

// field is a place in a Record.
type field string

const (
	fAgent  field = "agent"
	fPolicy field = "policy"
	fReason field = "reason"
	fDetail field = "detail"
	fPID    field = "pid"
	fPPID   field = "ppid"
	fUID    field = "uid"
	fComm   field = "comm"
	fPath   field = "path"
	fHost   field = "host"
	fAddr   field = "addr" // the host, when it is an IP address
	fPort   field = "port"
	fModel  field = "model"
)

// paths holds where a field goes unless its class says otherwise.
var paths = map[field]string{
	fAgent:  "actor.app_name",
	fPolicy: "policy.uid",
	fReason: "status_code",
	fDetail: "message",
	fPID:    "actor.process.pid",
	fPPID:   "actor.process.parent_process.pid",
	fUID:    "actor.process.user.uid",
	fComm:   "actor.process.name",
	fPath:   "unmapped.path",
	fHost:   "unmapped.host",
	fAddr:   "unmapped.addr",
	fPort:   "unmapped.port",
	fModel:  "unmapped.model",
}

// endpoint is where the classes with a destination put it.
var endpoint = map[field]string{
	fHost: "dst_endpoint.hostname",
	fAddr: "dst_endpoint.ip",
	fPort: "dst_endpoint.port",
}

var lifecycle = map[string]int{
	"install": 1, "installed": 1, "remove": 2, "removed": 2,
	"start": 3, "started": 3, "launch": 3, "launched": 3, "ready": 3,
	"stop": 4, "stopped": 4, "exit": 4, "exited": 4, "kill": 4, "killed": 4,
	"restart": 5, "restarted": 5, "update": 8, "updated": 8, "upgrade": 8, "upgraded": 8, "rollback": 8,
}

// Values of OCSF enumerations.
const (
	activityOther = 99
	severityInfo  = 1
	severityLow   = 2
	severityMid   = 3
	severityHigh  = 4
)

// classes: Process Activity 1007, File System Activity 1001, Kernel Activity
// 1003, Network Activity
// 4001, DNS Activity 4003, API Activity 6003, Application Lifecycle 6002,
// Entity Management 3004, Device Config State Change 5019.
var classes = map[Kind]class{
	KindExec: {
		uid: 1007, category: 1, activity: 1,
		paths:  map[field]string{fPath: "process.file.path"},
		derive: ofExec,
	},
	KindFile: {
		uid: 1001, category: 1, activity: 14,
		activities: map[string]int{
			"create": 1, "mkdir": 1, "read": 2, "write": 3, "update": 3, "truncate": 3, "delete": 4, "unlink": 4, "rmdir": 4,
			"rename": 5, "chown": 6, "chmod": 7, "stat": 8, "mount": 12, "unmount": 13, "open": 14,
		},
		paths:  map[field]string{fPath: "file.path"},
		derive: ofFile,
	},
	KindKernel: {
		uid: 1003, category: 1, activity: 4, // invoke
		derive: ofKernel,
	},
	KindConnect: {
		uid: 4001, category: 4, activity: activityOther,
		activities: map[string]int{
			"open": 1, "close": 2, "reset": 3, "fail": 4, "refuse": 5, "traffic": 6, "listen": 7,
			string(Allowed): 1, string(Denied): 5,
		},
		paths: endpoint,
	},
	KindDNS: {
		uid: 4003, category: 4, activity: 1,
		activities: map[string]int{"query": 1, "response": 2},
		paths:      map[field]string{fHost: "query.hostname", fAddr: "dst_endpoint.ip", fPort: "dst_endpoint.port"},
	},
	KindModel: {
		uid: 6003, category: 6, activity: activityOther,
		activities: map[string]int{"request": 1, "list": 2, "read": 2},
		paths:      with(endpoint, fModel, "api.service.name"),
		derive:     ofAPI("inference"),
	},
	KindApproval: {
		uid: 6003, category: 6, activity: 3, // the held request is updated
		paths:  endpoint,
		derive: ofAPI("approval"),
	},
	KindLifecycle: {
		uid: 6002, category: 6, activity: activityOther, activities: lifecycle,
		derive: ofApp,
	},
	KindPolicy: {
		uid: 3004, category: 3, activity: activityOther,
		activities: map[string]int{
			"create": 1, "load": 10, "loaded": 10, "activate": 10, "activated": 10, "update": 3, "updated": 3, "change": 3, "changed": 3, "remove": 4, "removed": 4,
		},
		paths:  map[field]string{fPolicy: "entity.uid"},
		derive: ofPolicy,
	},
	KindInstall: {
		uid: 6002, category: 6, activity: 1, activities: lifecycle,
		derive: ofApp,
	},
	KindWeakening: {
		uid: 5019, category: 5, activity: 1, severity: severityHigh,
		derive: ofWeakening,
	},
	KindService: {
		uid: 6002, category: 6, activity: activityOther, activities: lifecycle,
		derive: ofApp,
	},
}

// outcome is what a verdict means in the security_control profile's terms.
type outcome struct {
	status, action, disposition, severity int
}

// Status: 1 success, 2 failure. Action: 1 allowed, 2 denied. Disposition: 1
// allowed, 2 blocked, 14 delayed.
var outcomes = map[Verdict]outcome{
	"":      {0, 0, 0, severityInfo},
	Allowed: {1, 1, 1, severityInfo},
	Denied:  {2, 2, 2, severityMid},
	Held:    {99, 99, 14, severityLow},
}

func with(m map[field]string, f field, path string) map[field]string {
	c := map[field]string{f: path}
	for k, v := range m {
		c[k] = v
	}
	return c
}

// ofExec: the process that acts is also the one that becomes the program.
var ofExec = []leaf{
	{path: "process.pid", put: func(b []byte, e *entry) []byte { return strconv.AppendInt(b, int64(e.Process.PID), 10) }},
	{path: "process.file.name", put: func(b []byte, e *entry) []byte {
		if e.Path == "" {
			return b
		}
		return appendString(b, base(e.Path))
	}},
	{path: "process.file.type_id", put: func(b []byte, e *entry) []byte {
		if e.Path == "" {
			return b
		}
		return append(b, '8') // executable file
	}},
}

var ofFile = []leaf{
	{path: "file.name", put: func(b []byte, e *entry) []byte { return appendString(b, base(e.Path)) }},
	{path: "file.type_id", text: "0"}, // unknown
}

// ofKernel names the system call, which producers give as the attribute
// "syscall".
var ofKernel = []leaf{
	{path: "kernel.name", put: func(b []byte, e *entry) []byte { return appendString(b, e.text("syscall")) }},
	{path: "kernel.type_id", text: "2"}, // system call
}

func ofAPI(operation string) []leaf {
	return []leaf{
		{path: "api.operation", text: `"` + operation + `"`},
		{path: "src_endpoint.name", put: putName},
	}
}

var ofApp = []leaf{
	{path: "app.name", put: putName},
	{path: "app.vendor_name", text: `"` + product + `"`},
}

var ofPolicy = []leaf{
	{path: "entity.name", text: `"policy"`},
	{path: "entity.type_id", text: "5"},
}

var ofWeakening = []leaf{
	{path: "security_level_id", text: "2"}, // at risk
}

// putName names the agent, or else the appliance.
func putName(b []byte, e *entry) []byte {
	if e.Agent == "" {
		return appendString(b, product)
	}
	return appendString(b, e.Agent)
}

func base(path string) string {
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '/' {
			return path[i+1:]
		}
	}
	return path
}
