module github.com/dunlin-mqtt/dunlin/mqtttest/pahotest

go 1.26.0

require (
	github.com/dunlin-mqtt/dunlin v0.0.0
	github.com/eclipse/paho.golang v0.23.0
	github.com/eclipse/paho.mqtt.golang v1.5.1
	github.com/stretchr/testify v1.12.1
)

require (
	github.com/google/btree v1.1.3 // indirect
	github.com/gorilla/websocket v1.5.3 // indirect
	go.yaml.in/yaml/v3 v3.0.5 // indirect
	golang.org/x/net v0.44.0 // indirect
	golang.org/x/sync v0.24.0 // indirect
)

replace github.com/dunlin-mqtt/dunlin => ../..
