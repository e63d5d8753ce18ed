// Command ownstore will be a broker that keeps its state in SQLite.
package main

func main() {}
