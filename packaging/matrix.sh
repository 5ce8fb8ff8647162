#!/usr/bin/env bash
# Build the wheel, install it in empty environments with the lowest and the pinned versions, and run smoke.py in each.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
python=${PYTHON:-python3}
$python -m venv "$work/build"
"$work/build/bin/python" -m pip install -q --disable-pip-version-check build
"$work/build/bin/python" -m build -q --outdir "$work/dist" .
for versions in ${*:-packaging/lowest.txt constraints.txt}; do
    env="$work/$(basename "$versions" .txt)"
    $python -m venv "$env"
    "$env/bin/python" -m pip install -q --disable-pip-version-check -c "$versions" "${TORCH:-torch==2.13.0}" "$work"/dist/*.whl
    (cd "$work" && OMP_NUM_THREADS=1 "$env/bin/python" "$OLDPWD/packaging/smoke.py" 2>"$env/log" || { tail -20 "$env/log"; exit 1; })
done
