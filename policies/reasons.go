package policies

// The reason codes of a Decision. They are stable: the ledger, the audit
// rules of a site and the error bodies that agents read carry them.
const (
	ReasonRead  = "fs.read"  // allowed: below a read path, or a listed executable
	ReasonWrite = "fs.write" // allowed: below a write path
	ReasonExec  = "exec.listed"
	ReasonNet   = "net.allowed"
	ReasonInfer = "infer.routed"
	ReasonStrip = "infer.stripped" // allowed, after sensitive content is removed

	ReasonPath         = "path.invalid"  // empty, relative, with ".." or NUL, or too long
	ReasonUnreadable   = "fs.unlisted"   // listed nowhere
	ReasonReadOnly     = "fs.readonly"   // may be read, not written
	ReasonUnexecutable = "exec.unlisted" // not in process.exec
	ReasonWritable     = "exec.writable" // below a write path: what an agent writes it must not run

	ReasonHash = "exec.hash" // listed, with another content than its sha256

	ReasonHost     = "net.host"     // not a host name or IP address
	ReasonPort     = "net.port"     // outside 1 to 65535
	ReasonDenied   = "net.denied"   // a deny rule matched
	ReasonUnlisted = "net.unlisted" // no rule matched: denied or held, as network.default says

	ReasonBinary  = "net.binary"  // rules name the destination, for other programs: denied or held, as network.default says
	ReasonAddress = "net.address" // the name leads to an address that it may not lead to, or the address is one of the cluster's

	ReasonCall         = "call.allowed"  // a rule for the destination allows the message
	ReasonMessage      = "call.invalid"  // no message, or one that no parser of ours gives
	ReasonProtocol     = "call.protocol" // the destination's rules are for another protocol
	ReasonCallDenied   = "call.denied"   // a denyCalls rule matched
	ReasonCallUnlisted = "call.unlisted" // no calls or access entry covers the message

	ReasonModel     = "infer.model"     // not a model name
	ReasonUnrouted  = "infer.unlisted"  // no route for the model
	ReasonSensitive = "infer.sensitive" // sensitive content on its way out of the host

	ReasonAction = "action.unknown"
	ReasonPolicy = "policy.none" // no policy to decide by
)

// meanings puts each code in words: why, and for a refusal what would change it.
var meanings = map[string]string{
	ReasonRead:         "a filesystem or exec entry covers the path",
	ReasonWrite:        "filesystem.write covers the path",
	ReasonExec:         "process.exec lists the program",
	ReasonNet:          "network.allow lists the destination",
	ReasonInfer:        "an inference route serves the model",
	ReasonStrip:        "the route leaves the host, so sensitive content is removed first (inference.sensitive: strip)",
	ReasonPath:         `the path is not absolute, or holds ".." or a NUL byte; ask with the path that the kernel would open`,
	ReasonUnreadable:   "no filesystem entry covers the path; add it or a folder above it to filesystem.read",
	ReasonReadOnly:     "the path may be read but not written; add it or a folder above it to filesystem.write",
	ReasonUnexecutable: "process.exec does not list the program; add its path, or its folder with a final slash",
	ReasonWritable:     "the path is below a writable one, and what an agent can write it must not run; install the program in the image",
	ReasonHost:         "the destination is not a host name or an IP address",
	ReasonPort:         "the port is not between 1 and 65535",
	ReasonDenied:       "a deny rule names the destination, and deny beats allow; remove the rule to change this",
	ReasonUnlisted:     "no rule names the destination; add it to network.allow",
	ReasonHash:         "process.exec pins the program to a sha256 that this content does not have; install the pinned one, or change the pin",
	ReasonBinary:       "rules name the destination, but for other programs than this one and its ancestors; add it to their binaries",
	ReasonAddress:      "the name leads to an address that no rule lets it lead to; list the network in the rule's allowedIPs; an address of the cluster that the host is a node of wants a rule inside the cluster's networks",
	ReasonCall:         "a rule for the destination allows the message",
	ReasonMessage:      "there is no message to judge, or one that is not canonical",
	ReasonProtocol:     "the rules for the destination are for another protocol, or for two; write one protocol for each path",
	ReasonCallDenied:   "a denyCalls rule names the message, and deny beats allow; remove the rule to change this",
	ReasonCallUnlisted: "no rule for the destination covers the message; add it to the rule's calls",
	ReasonModel:        "the model's name is empty, too long or holds control characters",
	ReasonUnrouted:     "no inference route serves the model; add one to inference.routes",
	ReasonSensitive:    "the content looks sensitive and the route leaves the host; route the model to local, or choose inference.sensitive: strip",
	ReasonAction:       "the action is none of read, write, exec, connect, call and infer",
	ReasonPolicy:       "there is no policy to decide by; load one",
}
