package guard

import "golang.org/x/sys/unix"

// own are the calls that only this architecture has, or calls by another name.
var own = map[int]call{
	unix.SYS_FSTATAT: opens(at).as("newfstatat"),
}
