// Package wire carries framed, multiplexed requests and one-way messages
// between the nodes and clients of a cluster, over mutual TLS 1.3.
//
// A Server answers the methods registered with Handle, HandleFast and
// HandleOneWay. A Client is one logical connection to an address: it dials
// when first used, redials after a failure, and may be used by any number of
// goroutines. Large payloads travel in segments, so that a small message waits
// for one segment at most; traffic that must never wait for bulk data uses a
// Client of its own (ClientConfig.Class).
//
// Life of a call: Client.Call takes room in the connection's budget, registers
// the request and hands the frame to the connection's writer, which writes it
// in the caller's goroutine when nobody else is writing. The server's read
// loop decodes it (decoder), queues it and starts the handler; the reply goes
// through the server's writer; the client's read loop finds the call by its ID
// and wakes it.
//
// The bytes of the protocol are described in docs/formats/wire.md. What the
// package knows of certificates comes in through tls.Config and Identify, so
// that it does not depend on package auth.
package wire
