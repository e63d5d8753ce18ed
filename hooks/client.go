package hooks

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"strings"
)

// ShownUser returns a User Name, or a Principal, as it may be written to logs and pages. Some
// clients send a JSON Web Token as their User Name, which is a secret. For a name that begins with
// "eyJ" and has two dots ShownUser returns "(a token, HASH)", which is the same for the same token.
// It returns any other name as it is.
func ShownUser(name string) string {
	if !strings.HasPrefix(name, "eyJ") || strings.Count(name, ".") < 2 {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return "(a token, " + hex.EncodeToString(sum[:8]) + ")"
}

// User returns the name by which rules should know the client: the Principal of its Identity or, if
// the Authenticator set no Principal, the User Name of its CONNECT. ok is false if the client has
// neither. Ignore a User Name beside a Principal: nothing has verified it.
func (c *Client) User() (name string, ok bool) {
	if c.Identity.Principal != "" {
		return c.Identity.Principal, true
	}
	return c.Username, c.HasUsername
}

// Network returns the unit of limits per address: the IPv4 address of the client, or the /64
// network of its IPv6 address. ok is false for a client without an IP address.
func (c *Client) Network() (ip netip.Addr, ok bool) {
	if c.RemoteAddr == nil {
		return ip, false
	}
	ap, err := netip.ParseAddrPort(c.RemoteAddr.String())
	if err != nil {
		return ip, false
	}
	ip = ap.Addr().Unmap().WithZone("")
	if ip.Is6() && !ip.IsLoopback() {
		p, _ := ip.Prefix(64) // an IPv6 address has 128 bits
		ip = p.Addr()
	}
	return ip, true
}
