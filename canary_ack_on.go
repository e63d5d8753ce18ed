//go:build canary_ack

package dunlin

// earlyAck is a fault that the tests of package internal/crash must find: with the build tag
// canary_ack, what has to wait for a commit leaves before it.
const earlyAck = true
