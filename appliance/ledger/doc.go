// Package ledger keeps the appliance's record: an append-only Merkle log of
// security events on plain files, with a signed head.
//
// A producer describes one fact as a [Record] and hands it to a [Recorder].
// The ledger encodes it as an OCSF event, appends it, and returns when it is
// on the disk. An error means that the fact isn't recorded, and that the
// action it describes must not happen:
//
//	log, err := ledger.Open(dir, signer, verifier)
//	...
//	if err := log.Record(ctx, ledger.Record{Kind: ledger.KindConnect, Verdict: ledger.Allowed, Agent: "ada", Host: "pypi.org", Port: 443}); err != nil {
//		return err // refuse the connection
//	}
//
// An auditor needs the directory, the public key, and best of all a
// checkpoint that was kept somewhere else:
//
//	report, err := ledger.Verify(dir, verifier, ledger.Options{Anchors: [][]byte{old}})
//
// # The directory
//
//	checkpoint       the head, at most a second old; C2SP tlog-checkpoint with
//	                 the extension line "commit N": commits since the beginning
//	wal              the newest entries, some thousand at most, see wal.go
//	tile/<L>/<N>     full hash tiles: 256 hashes; C2SP tlog-tiles
//	tile/entries/<N> full entry bundles: 256 entries; C2SP tlog-tiles
//
// Nothing else may lie there. [ExportTiles] adds the partial tiles that
// public tools want.
//
// # How a commit works
//
// One goroutine writes. It takes everything that waits, appends it to the wal
// with a checkpoint signed over the tree that results, flushes once
// (fdatasync), and only then answers. When the wal holds 2048 entries, or fewer
// that take 4 MiB, they move to bundles and tiles. Every step keeps the earlier
// state readable until the later one is durable, so a crash at any point loses
// nothing that was answered. The wal's file is longer than what it holds, zeros
// to its end, while a service writes it: a flush into room that is there already
// takes half as long.
//
// # What it proves
//
// Every byte of every file is covered by a signature, a hash or an exact
// rule, so Verify finds any change made by somebody without the key. Whoever
// holds the key, or puts the whole directory back to an older state, is found
// only by comparing with an anchor kept elsewhere. The state in the checkpoint
// file is such an older state: who stops the service by force can cut off what
// came after it, at most a second's entries, unless an anchor covers them;
// Report.Unpublished says how many such entries there are. The checkpoints in the
// wal have the line "wal commit N" and are none: no checkpoint file can be made
// of them. Until a wal of an older version rotates, its own can.
// Key rotation isn't built: one log has one key.
package ledger
