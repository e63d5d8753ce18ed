module github.com/dunlin-mqtt/dunlin/internal/crash

go 1.26.0

require github.com/dunlin-mqtt/dunlin v0.0.0

require github.com/google/btree v1.1.3 // indirect

replace github.com/dunlin-mqtt/dunlin => ../..
