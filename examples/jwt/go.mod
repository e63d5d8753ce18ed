module github.com/dunlin-mqtt/dunlin/examples/jwt

go 1.26.0

require (
	github.com/dunlin-mqtt/dunlin v0.0.0
	github.com/dunlin-mqtt/dunlin/hooks/jwt v0.0.0
	github.com/golang-jwt/jwt/v5 v5.3.1
)

require github.com/google/btree v1.1.3 // indirect

replace github.com/dunlin-mqtt/dunlin => ../..

replace github.com/dunlin-mqtt/dunlin/hooks/jwt => ../../hooks/jwt
