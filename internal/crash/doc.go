// Package crash holds the test that kills a broker with SIGKILL at random moments, with its store
// on a real disk, and checks what its clients were promised: nothing acknowledged is lost, nothing
// of QoS 2 comes twice, each publisher's messages to a topic keep their order, and what is retained
// is what was acknowledged last. The same in virtual time, without processes and thousands of times
// a minute, is TestModel of the root package.
//
//	go test ./internal/crash                          50 kills
//	go test ./internal/crash -short                   5
//	DUNLIN_KILLS=1000 go test ./internal/crash -run Kill -timeout 2h -v     some ten minutes
//	DUNLIN_BROKER="/path/to/server -listen 127.0.0.1:0 ..." go test ./internal/crash -run Kill    another program, with -data DIR
//	go test ./internal/crash -run DiskFull -v      on a tmpfs that becomes full
//	DUNLIN_OFFLINE=10000x1000 go test ./internal/crash -run Offline -v    what queues of absent clients cost
//
// It runs itself as the broker, and for the full disk examples/server. With DUNLIN_CRASH_FAULT, a
// fault of the store, it has to fail: see TestPlantedFaultsAreFound.
package crash
