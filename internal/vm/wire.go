package vm

// Port is the name of the virtio-serial port that carries the commands.
const Port = "clawbox.vm"

// Handover is the word on the kernel's command line by which the guest's first
// program becomes the disk's /sbin/init as soon as the disk is the root.
const Handover = "clawbox.handover"

// Frame is one line of JSON on the command channel. The host sends one with
// Args, the guest answers with frames of output and a last one with Done. The
// guest's first frame, before any command, is Done alone: it is ready.
type Frame struct {
	Args []string `json:"args,omitempty"`
	Env  []string `json:"env,omitempty"` // beside the guest's own
	Dir  string   `json:"dir,omitempty"`
	// Seconds after which the guest kills the command's process group; 0: never.
	Limit int `json:"limit,omitempty"`

	Out  []byte `json:"out,omitempty"`
	Err  []byte `json:"err,omitempty"`
	Done bool   `json:"done,omitempty"`
	Code int    `json:"code,omitempty"` // 128 + the signal's number when one ended it
	Fail string `json:"fail,omitempty"` // why it could not be started
}
