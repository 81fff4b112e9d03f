package paxos

import (
	"fmt"
	"slices"
)

// Defaults of Config.
const (
	defaultAlpha           = 1024
	defaultMaxMessageBytes = 1 << 20
	defaultCacheBytes      = 16 << 20
	defaultElectionTimeout = Time(500e6)
	defaultHeartbeat       = Time(50e6)
	defaultLease           = Time(400e6)
	defaultMaxDriftPPM     = 1000

	alphaMax = 1 << 20
)

// withDefaults returns the configuration with its zero fields filled in.
func (c Config) withDefaults() Config {
	if c.Alpha == 0 {
		c.Alpha = defaultAlpha
	}
	if c.MaxMessageBytes == 0 {
		c.MaxMessageBytes = defaultMaxMessageBytes
	}
	if c.CacheBytes == 0 {
		c.CacheBytes = defaultCacheBytes
	}
	if c.ElectionTimeout == 0 {
		c.ElectionTimeout = defaultElectionTimeout
	}
	if c.Heartbeat == 0 {
		c.Heartbeat = min(defaultHeartbeat, c.ElectionTimeout/4)
	}
	if c.Lease == 0 {
		c.Lease = min(defaultLease, c.ElectionTimeout)
	}
	if c.MaxDriftPPM == 0 {
		c.MaxDriftPPM = defaultMaxDriftPPM
	}
	return c
}

// Validate reports what is wrong with the configuration, or nil. New panics where Validate complains.
func (c Config) Validate() error {
	c = c.withDefaults()
	switch {
	case c.ID == 0:
		return fmt.Errorf("paxos: Config.ID must not be 0")
	case len(c.Voters) > 0 && !slices.Contains(c.Voters, c.ID):
		return fmt.Errorf("paxos: Config.Voters %v must include this node, %d, or be empty when it joins a group", c.Voters, c.ID)
	case c.Alpha < 2 || c.Alpha > alphaMax:
		return fmt.Errorf("paxos: Config.Alpha must be between 2 and %d, found %d", alphaMax, c.Alpha)
	case c.MaxMessageBytes < 1 || c.CacheBytes < 1:
		return fmt.Errorf("paxos: Config.MaxMessageBytes and CacheBytes must be positive, found %d and %d", c.MaxMessageBytes, c.CacheBytes)
	case c.Heartbeat < 1 || c.Heartbeat*2 > c.ElectionTimeout:
		return fmt.Errorf("paxos: Config.Heartbeat must be positive and at most half of ElectionTimeout %d, found %d", c.ElectionTimeout, c.Heartbeat)
	case c.Lease < c.Heartbeat || c.Lease > c.ElectionTimeout:
		return fmt.Errorf("paxos: Config.Lease must be between Heartbeat %d and ElectionTimeout %d, found %d", c.Heartbeat, c.ElectionTimeout, c.Lease)
	case c.MaxDriftPPM < 0 || c.MaxDriftPPM > 200_000:
		return fmt.Errorf("paxos: Config.MaxDriftPPM must be between 0 and 200000, found %d", c.MaxDriftPPM)
	case c.Rand == nil:
		return fmt.Errorf("paxos: Config.Rand is required")
	case c.Log == nil:
		return fmt.Errorf("paxos: Config.Log is required")
	}
	if len(c.Voters) == 0 {
		return nil
	}
	if err := (Configuration{Voters: c.Voters}).Validate(); err != nil {
		return fmt.Errorf("paxos: Config.Voters: %w", err)
	}
	return nil
}

// leaseOfLeader is how long a leader may count on what followers grant for Config.Lease. Either clock may be off by
// MaxDriftPPM, in opposite directions: (1-d)/(1+d) > 1-2d.
func (c *Config) leaseOfLeader() Time {
	return c.Lease - Time(int64(c.Lease)/1_000_000*2*int64(c.MaxDriftPPM)) - Time(int64(c.Lease)%1_000_000*2*int64(c.MaxDriftPPM)/1_000_000) - 1
}
