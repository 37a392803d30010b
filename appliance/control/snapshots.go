package control

import (
	"context"
	"net/url"
	"time"
)

// Snapshot is a kept state of an agent's files.
type Snapshot struct {
	Name   string        `json:"name"`
	Number int           `json:"number"` // counts an agent's snapshots, never used twice
	Taken  time.Time     `json:"taken"`
	Bytes  int64         `json:"bytes"`
	Shared bool          `json:"shared"` // it shares blocks with the disk
	Held   time.Duration `json:"held"`   // nanoseconds that the agent was held still
}

// SnapshotRequest names a snapshot to take or to go back to.
type SnapshotRequest struct {
	Name string `json:"name"`
}

// Snapshot keeps the present state of an agent's files under a name.
func (c *Client) Snapshot(ctx context.Context, agent, name string) (s Snapshot, err error) {
	return s, c.call(ctx, "POST", agentPath(agent, "/snapshots"), SnapshotRequest{name}, &s)
}

// Snapshots lists an agent's snapshots, oldest first.
func (c *Client) Snapshots(ctx context.Context, agent string) (ss []Snapshot, err error) {
	return ss, c.call(ctx, "GET", agentPath(agent, "/snapshots"), nil, &ss)
}

// Restore puts a stopped agent's files back to a snapshot.
func (c *Client) Restore(ctx context.Context, agent, name string) error {
	return c.call(ctx, "POST", agentPath(agent, "/restore"), SnapshotRequest{name}, nil)
}

// RemoveSnapshot deletes a snapshot.
func (c *Client) RemoveSnapshot(ctx context.Context, agent, name string) error {
	return c.call(ctx, "DELETE", agentPath(agent, "/snapshots/"+url.PathEscape(name)), nil, nil)
}
