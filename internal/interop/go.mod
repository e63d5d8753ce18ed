module github.com/dunlin-mqtt/dunlin/internal/interop

go 1.26.0

require (
	github.com/eclipse/paho.golang v0.23.0
	github.com/eclipse/paho.mqtt.golang v1.5.1
)

require (
	github.com/coder/websocket v1.8.15 // indirect
	github.com/google/btree v1.1.3 // indirect
)

require (
	github.com/dunlin-mqtt/dunlin v0.0.0
	github.com/dunlin-mqtt/dunlin/listeners/websocket v0.0.0
	github.com/gorilla/websocket v1.5.3 // indirect
	golang.org/x/net v0.44.0 // indirect
	golang.org/x/sync v0.24.0 // indirect
)

replace github.com/dunlin-mqtt/dunlin => ../..

replace github.com/dunlin-mqtt/dunlin/listeners/websocket => ../../listeners/websocket
