//go:build canary_release

package dunlin

// dropRelease is a fault that the tests of package internal/crash must find: with the build tag
// canary_release, no PUBREC is ever recorded.
const dropRelease = true
