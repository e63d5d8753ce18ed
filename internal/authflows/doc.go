// Package authflows holds tests of the Authentication Methods with clients and libraries that
// others have written: github.com/eclipse/paho.golang, github.com/xdg-go/scram and
// github.com/golang-jwt/jwt.
package authflows
