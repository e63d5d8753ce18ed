module github.com/dunlin-mqtt/dunlin/internal/authflows

go 1.26.0

require (
	github.com/dunlin-mqtt/dunlin v0.0.0
	github.com/dunlin-mqtt/dunlin/hooks/jwt v0.0.0
	github.com/eclipse/paho.golang v0.23.0
	github.com/golang-jwt/jwt/v5 v5.3.1
	github.com/stretchr/testify v1.12.1
	github.com/xdg-go/scram v1.4.0
)

require (
	github.com/google/btree v1.1.3 // indirect
	github.com/xdg-go/stringprep v1.0.4 // indirect
	go.yaml.in/yaml/v3 v3.0.5 // indirect
	golang.org/x/text v0.3.8 // indirect
)

replace github.com/dunlin-mqtt/dunlin => ../..

replace github.com/dunlin-mqtt/dunlin/hooks/jwt => ../../hooks/jwt
