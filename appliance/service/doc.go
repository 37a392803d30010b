// Package service runs parts of the appliance as processes that own nothing
// they don't need, and lets them talk to each other.
//
// The supervisor (root) starts a child of its own binary for each part:
//
//	p, err := service.Start(ctx, service.Spec{
//		Role: "ledger", Config: cfg,
//		Cage: service.Cage{UID: 401100, GID: 401100, Write: []string{dir}},
//	})
//	err = p.Conn.Call(ctx, "record", rs, &first)
//
// and the child, whose main calls Main, runs the role:
//
//	service.Main(os.Args[2], map[string]service.Role{"ledger": ledgerRole})
//
// # How a child is caged
//
// It is started twice. The first image is still root: it reads the Cage from
// the supervisor, gives up user, groups and capabilities, enters a Landlock
// domain, and executes the same binary again; that ends all its threads, and
// everything it gave up stays given up. The second image begins with one
// system call filter for all threads, made from the groups of calls that the
// Cage names (seccomp.go). Then it tries what it must not be able to do, and
// a single attempt that succeeds ends it. Only then does it read anything
// else. Start returns the errors of those attempts as its Proof.
//
// A role that has to fork before it may be shut in (the guard's self-test)
// says Cage.Late and calls Self.Seal when it is done; until then it has read
// nothing but its configuration.
//
// What holds where the kernel lacks something: without Landlock, Start fails.
// With an ABI below 4 the rules for TCP ports are absent and the filter alone
// keeps services from opening sockets; below 6, signals are held back by user
// ids and the filter.
//
// # How they talk
//
// A Conn is one Unix stream socket with frames (frame.go) of at most MaxBody
// bytes that may carry descriptors. Both ends may call. A peer that breaks a
// rule, floods or stops reading loses the connection, and nothing else.
package service
