package budget

import "github.com/dunlin-mqtt/dunlin/hooks"

// ClientCost is what is known of a client takes at least.
const ClientCost = 512

// ClientBytes is about what is known of a client takes.
func ClientBytes(c *hooks.Client) int {
	n := ClientCost + len(c.Username) + len(c.Properties)
	n += len(c.Identity.Principal) + len(c.Identity.Tenant)
	for _, role := range c.Identity.Roles {
		n += len(role) + 16
	}
	for k, v := range c.Identity.Attributes {
		n += len(k) + len(v) + 48
	}
	if c.TLS != nil {
		for _, cert := range c.TLS.PeerCertificates {
			n += 4 * len(cert.Raw) // and what was made of it
		}
	}
	return n
}
