module github.com/dunlin-mqtt/dunlin/hooks/auth/crypt

go 1.26.0

require (
	github.com/dunlin-mqtt/dunlin v0.0.0
	github.com/stretchr/testify v1.12.1
	github.com/xdg-go/scram v1.4.0
	golang.org/x/crypto v0.58.0
)

require (
	github.com/xdg-go/stringprep v1.0.4 // indirect
	go.yaml.in/yaml/v3 v3.0.5 // indirect
	golang.org/x/sys v0.49.0 // indirect
	golang.org/x/text v0.43.0 // indirect
)

replace github.com/dunlin-mqtt/dunlin => ../../..
