//go:build !canary_nosync

package segment

// ackEarly is false but in a build that tests must find out.
const ackEarly = false
