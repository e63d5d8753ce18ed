module github.com/dunlin-mqtt/dunlin/examples/server

go 1.26.0

require (
	github.com/coder/websocket v1.8.15
	github.com/dunlin-mqtt/dunlin v0.0.0
	github.com/dunlin-mqtt/dunlin/bridge v0.0.0
	github.com/dunlin-mqtt/dunlin/hooks/auth/crypt v0.0.0
	github.com/dunlin-mqtt/dunlin/listeners/quic v0.0.0
	github.com/dunlin-mqtt/dunlin/listeners/websocket v0.0.0
	github.com/dunlin-mqtt/dunlin/store/bbolt v0.0.0
	github.com/pires/go-proxyproto v0.15.0
	github.com/quic-go/quic-go v0.65.0
	github.com/stretchr/testify v1.12.1
	golang.org/x/crypto v0.58.0
	golang.org/x/term v0.47.0
)

require (
	github.com/google/btree v1.1.3 // indirect
	go.etcd.io/bbolt v1.5.0 // indirect
	go.yaml.in/yaml/v3 v3.0.5 // indirect
	golang.org/x/net v0.60.0 // indirect
	golang.org/x/sync v0.24.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
)

replace github.com/dunlin-mqtt/dunlin => ../..

replace github.com/dunlin-mqtt/dunlin/bridge => ../../bridge

replace github.com/dunlin-mqtt/dunlin/hooks/auth/crypt => ../../hooks/auth/crypt

replace github.com/dunlin-mqtt/dunlin/store/bbolt => ../../store/bbolt

replace github.com/dunlin-mqtt/dunlin/listeners/quic => ../../listeners/quic

replace github.com/dunlin-mqtt/dunlin/listeners/websocket => ../../listeners/websocket
