//go:build !canary_norelease

package segment

// dropReleased is false but in a build that tests must find out.
const dropReleased = false
