//go:build canary_nosync

package segment

// ackEarly makes Commit return before it has written and synced: it is done by the next one, or
// Close. Tests of durability must fail with it.
const ackEarly = true
