module github.com/dunlin-mqtt/dunlin/examples/proxy

go 1.26.0

require (
	github.com/coder/websocket v1.8.15
	github.com/dunlin-mqtt/dunlin v0.0.0
	github.com/dunlin-mqtt/dunlin/listeners/websocket v0.0.0
)

require (
	github.com/google/btree v1.1.3 // indirect
	golang.org/x/sync v0.24.0 // indirect
)

replace (
	github.com/dunlin-mqtt/dunlin => ../..
	github.com/dunlin-mqtt/dunlin/listeners/websocket => ../../listeners/websocket
)
