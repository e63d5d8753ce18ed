// Package holders is how the broker reaches a field of store.Message that programs do not see: the
// count of the places in the broker's memory that hold the message.
package holders

// Of is a func(*store.Message) *atomic.Int64. It returns the count of a message. Package store sets
// Of when it is initialized, and nobody changes it afterwards. Its type is any because this package
// must not import package store.
var Of any
