// Package redis keeps blocks in Redis: one server, one that Sentinels watch,
// or a Redis Cluster. A block is a hash of its pages and of the checksums that
// its writer made (docs/formats/redis.md), under a key that a person can read,
// koinon:CLUSTER:b:BLOCK.
//
// Where a hash is, and how many copies there are, is Redis's business. So is
// whether it survives: [Store.Settings] tells what the servers promise.
package redis
