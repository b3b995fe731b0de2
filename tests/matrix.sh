#!/usr/bin/env bash
# The core of the tests with the newest and with the oldest supported release of everything, a row of a table each.
#   tests/matrix.sh [PYTHON...]         by default 3.10 to 3.14
# Needs uv (pip install uv), which fetches interpreters that are not here where it can, and 6 GB of disk for one
# environment at a time. UV_TORCH_BACKEND=cpu takes torch without CUDA, from its own index; PYTEST_ADDOPTS="-n 4".
set -uo pipefail
cd "$(dirname "$0")/.."
TESTS=(tests/test_dcls.py tests/test_interpolation.py tests/test_models.py tests/test_checkpoint.py
    tests/test_loading.py tests/test_deploy.py tests/test_hub.py tests/test_hub_folder.py tests/test_onnx.py
    tests/test_train.py tests/test_eval_accuracy.py)
PACKAGES=(torch timm pytorch-lightning huggingface-hub)
pythons=("$@")
[ ${#pythons[@]} -gt 0 ] || pythons=(3.10 3.11 3.12 3.13 3.14)
logs=$(mktemp -d)
failed=0
echo "| Python | releases | torch | timm | Lightning | hub | result |"
echo "|---|---|---|---|---|---|---|"
for python in "${pythons[@]}"; do
    for releases in oldest newest; do
        resolution=$([ $releases = oldest ] && echo lowest-direct || echo highest)
        log=$logs/$python-$releases.log
        where=$(mktemp -d)
        versions=()
        if ! uv venv --quiet --python "$python" "$where/venv" 2>"$log"; then
            result="no such interpreter here"
        elif ! uv pip install --quiet --python "$where/venv" --resolution $resolution --editable ".[all,dev]" 2>"$log"; then
            result="not installable, see $log"
            failed=1
        else
            for package in "${PACKAGES[@]}"; do
                versions+=("$(uv pip show --quiet --python "$where/venv" "$package" 2>/dev/null | sed -n 's/^Version: //p')")
            done
            leave_out=$([ $releases = oldest ] && echo "not onnx" || echo "")  # torch exports from 2.9 on
            "$where/venv/bin/python" -m pytest -q -k "$leave_out" "${TESTS[@]}" >"$log" 2>&1 || failed=1
            result=$(tail -n 1 "$log" | tr -d =)
        fi
        echo "| $python | $releases | ${versions[0]-} | ${versions[1]-} | ${versions[2]-} | ${versions[3]-} | $result |"
        rm -rf "$where"
    done
done
echo "logs: $logs"
exit $failed
