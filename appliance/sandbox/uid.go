package sandbox

import "github.com/clawbox/clawbox/policies"

// UID is the host user id under which the agent runs: known before it starts,
// for who writes about it.
func (l *Local) UID(name string, p policies.Process) (int, error) {
	id, err := l.owner(name, p)
	return id.uid, err
}
