// Package endtoend holds the tests of the root module whose subject is real time or load: what a
// broker does on sockets of the kernel while a machine is busy, and what package mqtttest does
// outside of a bubble. They use what every program can import. Here, and nowhere else in the
// module, a test may sleep: all others run in virtual time or wait for an event, which
// TestTestsDoNotSleep of the root package holds.
package endtoend
