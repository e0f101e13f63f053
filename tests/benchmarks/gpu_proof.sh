#!/usr/bin/env bash
# Proof on one card, whole in 12 minutes: throughput, query towers on two data sets, scaling over layers and data. One JSON and one table.
#
#     bash tests/benchmarks/gpu_proof.sh --data FOLDER [--data FOLDER] [--out FOLDER]
#     bash tests/benchmarks/gpu_proof.sh --dry-run        # tiny models on a data set made up for it: shows that the script is in order
#
# See tests/benchmarks/gpu_proof.py, which does the work; PYTHON names another interpreter than that of .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python="${PYTHON:-.venv/bin/python}"
[ -x "$python" ] || python="$(command -v python3)"
exec "$python" -m tests.benchmarks.gpu_proof "$@"
