package jwt_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	dunlinjwt "github.com/dunlin-mqtt/dunlin/hooks/jwt"
	"github.com/dunlin-mqtt/dunlin/packets"
	"github.com/golang-jwt/jwt/v5"
)

// The token says who the client is and what it may publish. With an issuer that has its keys at a
// URL, the KeySource is that of FetchKeys.
func ExampleNew() {
	secret := []byte("a secret of thirty-two bytes or more")
	keys, err := dunlinjwt.NewKeys(dunlinjwt.Key{Key: secret})
	if err != nil {
		log.Fatal(err)
	}
	tokens, err := dunlinjwt.New(dunlinjwt.Options{Keys: keys, Audience: "mqtt"})
	if err != nil {
		log.Fatal(err)
	}
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{
		"sub": "jane", "aud": "mqtt", "exp": time.Now().Add(time.Hour).Unix(),
		"publish": []string{"sensors/%u/#"},
	}).SignedString(secret)
	if err != nil {
		log.Fatal(err)
	}

	client, grant := &hooks.Client{ID: "c1"}, new(hooks.Grant)
	err = tokens.Authenticate(context.Background(), &hooks.ConnectRequest{
		Client: client, Grant: grant, Connect: &packets.Connect{HasPassword: true,
			Password: []byte(token)},
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(grant.Identity.Principal, "for", time.Until(grant.Expires).Round(time.Hour))

	client.Identity = grant.Identity // as the broker does
	for _, topic := range []string{"sensors/jane/temperature", "sensors/joe/temperature"} {
		err := tokens.Authorizer().Authorize(context.Background(),
			&hooks.AccessRequest{Client: client, Action: hooks.ActionPublish, Topic: topic})
		fmt.Println(topic, packets.CodeOf(err))
	}
	// Output:
	// jane for 1h0m0s
	// sensors/jane/temperature Success
	// sensors/joe/temperature Not authorized
}
