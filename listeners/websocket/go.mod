module github.com/dunlin-mqtt/dunlin/listeners/websocket

go 1.26.0

require (
	github.com/coder/websocket v1.8.15
	github.com/dunlin-mqtt/dunlin v0.0.0
	github.com/stretchr/testify v1.12.1
)

require (
	github.com/google/btree v1.1.3 // indirect
	go.yaml.in/yaml/v3 v3.0.5 // indirect
)

replace github.com/dunlin-mqtt/dunlin => ../..
