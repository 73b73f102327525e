#!/usr/bin/env bash
# What one NVIDIA GPU does with this code, in at most 12 minutes: tests, sampling, update, memory, iterations. Writes
# gpu.json and gpu.md into $OUT, or runs/gpu, goes on after a failure, and exits with 1 where there was one.
#
#   tests/benchmarks/gpu.sh               a machine with a CUDA build of torch
#   WHEELS=wheels tests/benchmarks/gpu.sh  and without the other packages or a network: the wheels of a folder are used
#   tests/benchmarks/gpu.sh --rehearse    the same on a CPU, at sizes that say nothing
#
# The folder, made where there is a network, for the Python of the machine with the GPU (torch is left out):
#   pip download --only-binary=:all: --no-deps --python-version 3.11 -d wheels -r <(grep -v '^torch==' requirements.lock)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-python3}
if [ -n "${WHEELS:-}" ]; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  "$python" -m pip install --quiet --no-index --no-deps --target "$site" "$WHEELS"/*.whl
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
"$python" -m tests.benchmarks.gpu "$@"
