# The commands of this repository. Each sets up what it needs first and repeats nothing.
SHELL := /bin/bash
.PHONY: help setup build practice test bench clean

ENV := . setup/env.sh &&

help:  ## show this
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup:  ## install system packages, .venv with ROS 2, build the messages
	@bash setup/setup.sh

build: setup  ## the same: builds only what changed

practice: setup  ## practise in the simulator: make practice ARGS="--episodes 40 --session my_session"
	@$(ENV) exec rlt practice $(ARGS)

test: setup  ## run the tests: make test ARGS="test/core -k replay"
	@$(ENV) exec python3 -m pytest $(ARGS)

bench: setup  ## run the benchmarks: make bench ARGS="control --json control.json"
	@$(ENV) exec rlt bench $(or $(ARGS),all)

clean:  ## remove what was built; .venv and sessions stay
	rm -rf build install log
	find rlt_ros launch test -name __pycache__ -prune -exec rm -rf {} +
