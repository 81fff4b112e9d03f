//go:build linux && !client

package main

import (
	"errors"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon/internal/node"
)

func newInitCommand(a *app) *cobra.Command {
	var o node.FoundOptions
	cmd := &cobra.Command{
		Use:   "init CLUSTER --dir DIR --listen HOST:PORT",
		Short: "Prepare the first node of a new cluster on this machine",
		Long: `Prepare the first node of a new cluster on this machine: its certificate
authority (CA), and the files of the node and of a first client, all in --dir.

The directory DIR/ca is what makes this cluster yours: keep a copy of it in a safe
place. Who has ca.key can make nodes and clients.`,
		Example: `  koinon init lab --dir /var/lib/koinon --listen 10.0.0.1:7400
  koinon serve --config /var/lib/koinon/node.toml`,
		Args: arguments(1, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			if o.Dir == "" || o.Listen == "" {
				return &usageError{cmd: "koinon init", err: errors.New("give --dir DIR and --listen HOST:PORT")}
			}
			o.Cluster = args[0]
			var err error
			if o.Dir, err = filepath.Abs(o.Dir); err != nil {
				return err
			}
			if err := node.Found(o); err != nil {
				return err
			}
			a.note(`Cluster %s is prepared in %s. Start its first node:

  koinon serve --config %s

Then, from this machine:

  koinon --config %s node token`, o.Cluster, o.Dir, filepath.Join(o.Dir, "node.toml"), filepath.Join(o.Dir, "client.toml"))
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Dir, "dir", "", "keep everything in `DIR`, which must be empty")
	flags.StringVar(&o.Listen, "listen", "", "accept connections on `HOST:PORT`")
	flags.StringVar(&o.Advertise, "advertise", "", "the `HOST:PORT` under which others reach this node, if it is another")
	flags.StringVar(&o.Zone, "zone", "", "failure domain (`ZONE`) of this node")
	return cmd
}
