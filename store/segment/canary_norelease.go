//go:build canary_norelease

package segment

// dropReleased makes Commit forget that a PUBREC came, so that a crash repeats the PUBLISH. Tests
// of exactly once must fail with it.
const dropReleased = true
