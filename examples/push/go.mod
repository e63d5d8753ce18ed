module github.com/dunlin-mqtt/dunlin/examples/push

go 1.26.0

require (
	github.com/dunlin-mqtt/dunlin v0.0.0
	github.com/dunlin-mqtt/dunlin/bridge v0.0.0
	github.com/dunlin-mqtt/dunlin/listeners/websocket v0.0.0
	golang.org/x/sync v0.24.0
	modernc.org/sqlite v1.60.1
)

require (
	github.com/coder/websocket v1.8.15 // indirect
	github.com/dustin/go-humanize v1.0.1 // indirect
	github.com/google/btree v1.1.3 // indirect
	github.com/google/uuid v1.6.0 // indirect
	github.com/mattn/go-isatty v0.0.24 // indirect
	github.com/ncruces/go-strftime v1.0.0 // indirect
	github.com/remyoudompheng/bigfft v0.0.0-20230129092748-24d4a6f8daec // indirect
	golang.org/x/sys v0.48.0 // indirect
	modernc.org/libc v1.77.1 // indirect
	modernc.org/mathutil v1.7.1 // indirect
	modernc.org/memory v1.12.1 // indirect
)

replace (
	github.com/dunlin-mqtt/dunlin => ../..
	github.com/dunlin-mqtt/dunlin/bridge => ../../bridge
	github.com/dunlin-mqtt/dunlin/listeners/websocket => ../../listeners/websocket
)
