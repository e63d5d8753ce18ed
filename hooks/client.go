package hooks

// User returns the name by which rules should know the client: the Principal of its Identity or, where the Authenticator set
// none, the User Name of its CONNECT. ok is false for a client that has neither. A User Name beside a Principal says nothing:
// nobody has verified it.
func (c *Client) User() (name string, ok bool) {
	if c.Identity.Principal != "" {
		return c.Identity.Principal, true
	}
	return c.Username, c.HasUsername
}
