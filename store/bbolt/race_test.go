//go:build race

package bbolt

const raced = true
