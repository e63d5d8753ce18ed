module github.com/dunlin-mqtt/dunlin/bridge

go 1.26.0

require github.com/dunlin-mqtt/dunlin v0.0.0

require (
	github.com/google/btree v1.1.3 // indirect
	golang.org/x/sync v0.24.0 // indirect
)

replace github.com/dunlin-mqtt/dunlin => ..
