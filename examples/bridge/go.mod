module github.com/dunlin-mqtt/dunlin/examples/bridge

go 1.26.0

require (
	github.com/dunlin-mqtt/dunlin v0.0.0
	github.com/eclipse/paho.golang v0.23.0
)

replace github.com/dunlin-mqtt/dunlin => ../..
