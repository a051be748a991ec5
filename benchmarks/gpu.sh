#!/usr/bin/env bash
# Users a second on one GPU, against one PEFT + Opacus client after another; see benchmarks/gpu.py.
#
#   benchmarks/gpu.sh                        about 8 minutes on one GPU; figures in gpu.json
#   benchmarks/gpu.sh --device cpu --quick   the same code in a minute without a GPU
#   benchmarks/gpu.sh --help
#
# PYTHON names the interpreter; else .venv's, else python3.  Where that lacks a package, `make install`
# makes .venv first, which needs the network.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" TOKENIZERS_PARALLELISM=false

works() {
    command -v "$1" > /dev/null && "$1" -c 'import benchmarks.cli, benchmarks.gpu' 2> /dev/null
}

for python in "${PYTHON:-}" .venv/bin/python python3; do
    if [ -n "$python" ] && works "$python"; then
        exec "$python" -m benchmarks.cli gpu "$@"
    fi
done
make install
exec .venv/bin/python -m benchmarks.cli gpu "$@"
