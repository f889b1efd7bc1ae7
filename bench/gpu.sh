#!/usr/bin/env bash
# All measurements that want a CUDA GPU, unattended: bench/gpu.sh --budget 25m --data FOLDER --output results
# FOLDER holds the CIFAR-10 packs (cifar-10-python.tar.gz unpacked, or a converted cifar10.safetensors). Python packages
# that are missing are taken from the folder WHEELS, if that is set. `--size rehearsal` is the same on a CPU, in minutes.
set -eu
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-python3}"
missing=$("$PYTHON" - <<'PY'
import importlib.util as util
names = {"PIL": "pillow", **{n: n for n in ("torch", "torchvision", "numpy", "safetensors", "sqlalchemy", "alembic", "pydantic", "rich", "typer")}}
print(*(package for module, package in names.items() if util.find_spec(module) is None))
PY
)
if [ -n "$missing" ]; then
	if [ -n "${WHEELS:-}" ]; then
		# shellcheck disable=SC2086
		"$PYTHON" -m pip install --quiet --disable-pip-version-check --no-index --find-links "$WHEELS" $missing
	else
		echo "missing: $missing; put their wheels into a folder and set WHEELS to it" >&2
		exit 1
	fi
fi
exec "$PYTHON" -m bench.gpu "$@"
