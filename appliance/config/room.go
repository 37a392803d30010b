package config

// What must be free on the ledger's file system, in bytes. With less than
// LaunchRoom no agent is launched; with less than StopRoom the one that has
// written most is stopped, while the ledger can still say so. Between them lies
// what an agent may write into the ledger at once (RecordMiB's default), so that
// a launch does not end one that runs.
const (
	StopRoom   = 256 << 20
	LaunchRoom = StopRoom + defaultRecordMiB<<20
)

// MakeRoom is what an operator can do about a full disk.
const MakeRoom = "remove agents' snapshots ('clawbox agent snapshots'), unused blobs ('clawbox registry gc'), or what else is there"
