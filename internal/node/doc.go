// Package node puts the parts of a running node together: Serve makes it of a
// replica host, a block store, the services over the wire and the duties of a
// leader. Found and Join make the directory that it runs in.
package node
