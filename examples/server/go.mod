module github.com/dunlin-mqtt/dunlin/examples/server

go 1.26.0

require github.com/dunlin-mqtt/dunlin v0.0.0

require (
	github.com/google/btree v1.1.3 // indirect
	go.yaml.in/yaml/v3 v3.0.6 // indirect
)

replace github.com/dunlin-mqtt/dunlin => ../..
