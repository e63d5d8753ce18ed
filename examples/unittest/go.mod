module github.com/dunlin-mqtt/dunlin/examples/unittest

go 1.26.0

require (
	github.com/dunlin-mqtt/dunlin v0.0.0
	github.com/eclipse/paho.golang v0.23.0
)

require (
	github.com/google/btree v1.1.3 // indirect
	github.com/gorilla/websocket v1.5.3 // indirect
	golang.org/x/net v0.43.0 // indirect
)

replace github.com/dunlin-mqtt/dunlin => ../..
