//go:build linux && !client

package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
)

// pprofEnv names an address, such as 127.0.0.1:6060, on which serve and mount
// answer the requests of `go tool pprof`. It is for developers: who reaches the
// address sees the process's memory.
const pprofEnv = "KOINON_PPROF"

// servePprof answers profile requests until ctx is done, if it was asked for.
func servePprof(ctx context.Context, log *slog.Logger) {
	addr := os.Getenv(pprofEnv)
	if addr == "" {
		return
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		log.Warn("no profiles", "err", err)
		return
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	srv := &http.Server{Handler: mux, BaseContext: func(net.Listener) context.Context { return ctx }}
	stop := context.AfterFunc(ctx, func() {
		if err := srv.Close(); err != nil {
			log.Debug("closing the profile server", "err", err)
		}
	})
	go func() { // ends with srv
		defer stop()
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Warn("no more profiles", "err", err)
		}
	}()
	log.Info("profiles", "addr", l.Addr().String())
}
