module github.com/dunlin-mqtt/dunlin/hooks/jwt

go 1.26.0

require (
	github.com/dunlin-mqtt/dunlin v0.0.0
	github.com/golang-jwt/jwt/v5 v5.3.1
	github.com/stretchr/testify v1.12.1
)

require go.yaml.in/yaml/v3 v3.0.5 // indirect

replace github.com/dunlin-mqtt/dunlin => ../..
