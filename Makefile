# Koinon. `make dev` brings up three nodes and a mounted tree; `make test` tests
# everything and installs what the tests need.

GO ?= go
export GOTOOLCHAIN = local
export GOFLAGS := -buildvcs=false
# Without C the binary runs on every Linux, and starts 1.4 ms sooner.
export CGO_ENABLED = 0

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -X main.stamped=$(VERSION)
TOOL := $(GO) tool -modfile=tools/go.mod

# How long and from which seed the crash loop and the simulation run.
SEED ?= 1
SEEDS ?= 1000
COUNT ?= 50
RUNS ?= 200
TASKS ?= 1000
MIB ?= 1024
MINUTES ?= 30
DIR ?= .

.PHONY: build dev gangs test unit system race lint cross generate bench clean crash crash-database crash-redis scale move failover sim mutations explore fuzz histories bench-consensus bench-run words deps-test deps-generate

# The file holds a client's program, which starts in less than half the time, and the
# node's, which is linked behind the addresses of the other (docs/decisions/0022-two-programs.md).
NODE_ADDRESS := 0x40001000

build: ## the one binary
	$(GO) build -tags client -ldflags '-s -w $(LDFLAGS)' -o bin/parts/client ./cmd/koinon
	$(GO) build -ldflags '-T $(NODE_ADDRESS) $(LDFLAGS)' -o bin/parts/node ./cmd/koinon
	GOOS= GOARCH= $(GO) run ./internal/program/join bin/parts/client bin/parts/node bin/koinon

dev: build ## three nodes on this machine with a mounted tree, until Ctrl-C
	bin/koinon dev up

test: deps-test lint cross unit system ## all tests

deps-test: ## what the tests need beside Go and make
	./test/deps.sh test

deps-generate:
	./test/deps.sh generate

unit: build
	$(GO) test -timeout 10m $$($(GO) list ./... | grep -v '/test$$')

system: build ## real processes, real mounts, real kills
	$(GO) test -timeout 30m -count=1 ./test/...

race:
	CGO_ENABLED=1 $(GO) test -race -timeout 30m $$($(GO) list ./... | grep -v '/test$$')

lint:
	@out=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$out" ]; then echo "gofmt would change:"; echo "$$out"; exit 1; fi
	$(GO) vet ./...
	$(GO) vet -tags client ./cmd/koinon
	cd bench/consensus && $(GO) vet .
	$(TOOL) staticcheck ./...

# The command line is for macOS and Windows too, without init, serve, mount and dev.
CROSS ?= linux/arm64 darwin/arm64 windows/amd64

cross: ## builds the binary for other systems, into nowhere
	@set -e; for target in $(CROSS); do echo "build for $$target"; \
		GOOS=$${target%/*} GOARCH=$${target#*/} CGO_ENABLED=0 $(GO) build -o /dev/null ./cmd/koinon; done

generate: deps-generate ## protobuf code; the result is committed
	$(GO) build -modfile=tools/go.mod -o bin/ google.golang.org/protobuf/cmd/protoc-gen-go github.com/planetscale/vtprotobuf/cmd/protoc-gen-go-vtproto
	cd internal && PATH="$$PWD/../bin:$$PATH" protoc -I. --go_out=. --go_opt=paths=source_relative --go-vtproto_out=. --go-vtproto_opt=paths=source_relative,features=marshal+unmarshal+size+clone $$(find . -name '*.proto' | sed 's|^\./||' | sort)
	$(GO) run ./internal/pb/plain $$(find internal -name '*.proto' | sed 's|\.proto$$|.pb.go|' | sort)

bench: build ## ./bin/koinon bench on DIR
	bin/koinon bench $(DIR)

bench-run: build ## koinon run beside slurm-wlm and GNU parallel: make bench-run RUNS=200 TASKS=1000; as root
	./test/deps.sh bench
	RUNS=$(RUNS) TASKS=$(TASKS) ./test/bench-run.sh

words: build ## words of 1 GiB of text counted by three nodes and by one machine: make words MIB=1024
	KOINON_WORDS_MIB=$(MIB) $(GO) test -timeout 0 -count=1 -v -run TestCountWords ./test/...

bench-consensus: ## the log beside hashicorp/raft and etcd's raft, on the disk of DIR; under five minutes
	./test/deps.sh bench
	cd bench/consensus && $(GO) vet -tags etcdserver . && $(GO) test -tags etcdserver . && $(GO) build -tags etcdserver -o ../../bin/bench-consensus .
	bin/bench-consensus -dir $(DIR) -arms koinon,koinon-client,koinon-memory,hashicorp,etcd,etcd-server

crash: build ## the crash loop at length: make crash MINUTES=30 SEED=7
	KOINON_CRASH_MINUTES=$(MINUTES) KOINON_CRASH_SEED=$(SEED) $(GO) test -timeout 0 -count=1 -v -run TestCrashLoop ./test/...

crash-database: build ## the same with the metadata in MariaDB, which is killed too
	KOINON_CRASH_MINUTES=$(MINUTES) KOINON_CRASH_SEED=$(SEED) $(GO) test -timeout 0 -count=1 -v -run TestCrashLoopInDatabase ./test/...

crash-redis: build ## the same with the blocks in Redis and the metadata in MariaDB, all of which are killed
	KOINON_CRASH_DATABASE=1 KOINON_CRASH_MINUTES=$(MINUTES) KOINON_CRASH_SEED=$(SEED) $(GO) test -timeout 0 -count=1 -v -run TestCrashLoopInRedis ./test/...

scale: build ## 200,000 files: memory of the nodes and time to restart
	KOINON_SCALE_FILES=200000 $(GO) test -timeout 0 -count=1 -v -run TestManyFiles ./test/...

move: build ## 200,000 files from the log to MariaDB and back: memory, and every byte
	KOINON_MOVE_FILES=200000 $(GO) test -timeout 0 -count=1 -v -run TestMoveBetweenEngines ./test/...

failover: build ## how long writes stop when the leader is killed, 20 times
	KOINON_FAILOVERS=20 $(GO) test -timeout 0 -count=1 -v -run TestFailover ./test/...

sim: ## the consensus simulations, of hosts and of the core alone: make sim SEEDS=1000, or one run again: make sim SEED=7
	$(if $(filter command environment,$(firstword $(origin SEED))),KOINON_SEED=$(SEED) KOINON_TRACE=1,KOINON_SEEDS=$(SEEDS)) $(GO) test -timeout 0 -count=1 -v -run TestSeeds ./internal/sim/...

mutations: ## which seed finds each of the planted mistakes
	KOINON_MUTATIONS=1 $(GO) test -timeout 0 -count=1 -v -run TestMutations ./internal/sim/...
	$(GO) test -timeout 0 -count=1 -v -run Mutation ./commit

explore: ## the consensus core through every order of events, in larger groups
	KOINON_EXPLORE=1 $(GO) test -timeout 0 -count=1 -v -run TestExplore ./paxos

# What reads bytes or messages from outside: the core, the log, snapshots, the wire.
FUZZ := paxos/FuzzStep paxos/FuzzHistory internal/replica/wal/FuzzReplay internal/replica/FuzzSnapshot internal/replica/FuzzDecode \
	internal/wire/FuzzDecoder internal/wire/FuzzPreface internal/wire/FuzzError

fuzz: ## every fuzz target in turn, MINUTES in all: make fuzz MINUTES=30
	@set -e; for f in $(FUZZ); do echo "$$f"; $(GO) test -run '^$$' -fuzz "^$${f##*/}$$" -fuzztime $$(($(MINUTES) * 60 / $(words $(FUZZ))))s ./$${f%/*}; done

gangs: build ## gangs of processes while nodes, leaders and clients are killed: make gangs COUNT=500 SEED=7
	KOINON_GANGS=$(COUNT) KOINON_GANGS_SEED=$(SEED) $(GO) test -timeout 0 -count=1 -v -run 'TestGangs$$' ./test/...

histories: build ## what clients saw under kills, pauses and cuts is linearizable: make histories COUNT=50 SEED=7
	KOINON_HISTORIES=$(COUNT) KOINON_HISTORY_SEED=$(SEED) $(GO) test -timeout 0 -count=1 -v -run 'TestHistor(ies|iesWhileMembersChange|yChecker)$$' ./test/...

clean:
	rm -rf bin
