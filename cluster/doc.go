// Package cluster is the interface between several Dunlin brokers and the engine that they share.
//
// A [Backend] gives one node, which is one broker, four things:
//
//   - A log of messages. [Backend.Commit] makes messages durable on a majority of the engine's
//     replicas. Every node gets every message of the log, in the same order, through
//     [Handler.Records]. [Backend.Read] reads older ones by Topic Filter.
//   - A register of small values, such as which node has the Session of a client. A [Change]
//     replaces a value only if nobody else has replaced it before.
//   - A bus for what need not be durable: QoS 0 messages ([Backend.Send]) to the nodes that have
//     subscribers for them ([Backend.Interest]), and questions to one node ([Backend.Call]).
//   - The list of the live nodes ([Handler.Nodes]), and whether this node can reach a majority
//     ([Handler.Majority]).
//
// # Who needs this package
//
// This package is for people who write a Backend for an engine: NATS JetStream, PostgreSQL, etcd.
// Package clustertest holds the contract as a test suite for any Backend. Package memory is a
// Backend for tests: several nodes in one process, with faults and in virtual time.
//
// # What is not built yet
//
// The Broker does not use this package yet: Config has no field for a Backend, and one Dunlin is
// still one process. There is no Backend for a real engine yet either. The interface can still
// change until both are there.
//
// # The rules
//
// A Backend keeps these rules. Each is a test of package clustertest.
//
//   - L1: Records of one node and partition are in the order of their Commits, without holes, and
//     each is there once, whatever was sent again underneath.
//   - L2: Handler.Records of every node gets the same records in the same order, all of them, also
//     on a node that was cut off, paused, restarted or slow.
//   - L3: After Commit has returned, the record is in the sequence of every node that gets a later
//     one, and in every Read whose UpTo is at or behind it.
//   - L4: If several nodes commit Records with the same Once, exactly one of them is not Repeated.
//     After Forget the next one is not Repeated either.
//   - L5: Retained yields what applying the sequence up to its position yields.
//   - L6: Before a node is gone from the list of another node, or is there with a new Incarnation,
//     it is fenced: nothing that it began to commit earlier takes effect any more.
//   - R1: Of several Changes of a key that expect the same Rev, exactly one succeeds. A Change of
//     two keys is never half there.
//   - R2: What Get and List return may be old. A Change that is based on something old is refused.
//   - R3: A TTL frees a key no earlier than its time and at most [Slack] later.
//   - B1: If a node calls Interest and then Synced, it gets what other nodes Send from then on.
//   - N1: A node that died or is cut off is gone from the list of all others within [Lease] and
//     one second. The node that is cut off hears Majority with an error within 2 seconds. Time
//     without a leader of the engine does not count, and costs no other node its place in the list.
//   - D1: While a node drains, no Commit of another node waits longer than one second because of
//     it.
package cluster
