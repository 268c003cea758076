# Each target works on a machine with Python ≥ 3.10, make and a package registry: it makes its own .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help setup demo test bench edge-runtimes edge coverage peers paper lint clean

help:
	@echo "make demo      compress the network that ships in models/ and show what came of it"
	@echo "make test      run the tests"
	@echo "make bench     time networks before and after compression (MODEL=path.onnx adds yours), then make"
	@echo "               paper on the digits: some minutes"
	@echo "make edge      run networks in OpenVINO, MNN and ncnn before and after compression (MODEL=path.onnx adds yours)"
	@echo "make coverage  compress well-known architectures, exported with torch and timm, into docs/coverage.md"
	@echo "               (FILES=folder takes the ONNX files there, into benchmarks/results/coverage.md)"
	@echo "make peers     accuracy against MACs of this project and other tools, Torch-Pruning where it is installed"
	@echo "make paper     the paper's experiment: pruning, Tucker, and both, at similar accuracy; goes on where it was"
	@echo "               stopped (QUICK=1: fewer points and smaller images; MODEL=path.onnx DATA=folder: your own)"
	@echo "make lint      ruff and mypy"

$(READY): setup.cfg pyproject.toml
	@echo "setting up $(VENV) (once, some minutes) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --upgrade pip
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[dev]'
	@touch $(READY)

setup: $(READY)

demo: $(READY)
	@$(BIN)/python -m models.demo

test: $(READY)
	@$(BIN)/python -m pytest -n auto

bench: $(READY)
	@$(BIN)/python -m benchmarks.latency $(if $(MODEL),"$(MODEL)")
	@$(BIN)/python -m benchmarks.paper digits

# ncnn's converter, pnnx, asks for PyTorch; for ONNX files it does without.
edge-runtimes: $(READY)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[edge]'
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps pnnx

edge: edge-runtimes
	@$(BIN)/python -m benchmarks.edge $(if $(MODEL),"$(MODEL)")

coverage: $(READY)
	@$(if $(FILES),,$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[export]')
	@$(BIN)/python -m benchmarks.coverage $(if $(FILES),--files "$(FILES)")

peers: $(READY)
	@$(BIN)/python -m benchmarks.peers

paper: $(READY)
	@$(BIN)/python -m benchmarks.paper $(NETWORKS) $(if $(MODEL),--model "$(MODEL)") $(if $(DATA),--data "$(DATA)") \
		$(if $(QUICK),--quick)

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info demo-out benchmarks/results
