#!/usr/bin/env bash
# Run the tests on several versions of Paddle, each in its own environment, which is kept:
#   scripts/test_on_paddle.sh VERSION... [-- ARGUMENTS OF PYTEST]
#   scripts/test_on_paddle.sh 2.6.2 3.2.2 3.3.1
#   scripts/test_on_paddle.sh 2.6.2 -- tests/modeling/test_losses.py -q
# ENVIRONMENTS is the folder of the environments (default: the checkout; 3 GB each), PYTHON their interpreter.
# The last lines are a table of the versions. The exit code is 1 if any test failed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
}

versions=()
while (($#)) && [[ $1 != -- ]]; do
  [[ $1 =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]] || usage
  versions+=("$1")
  shift
done
((${#versions[@]})) || usage
tests=(tests -q -m "not slow")
if (($# > 1)); then tests=("${@:2}"); fi

environments=$(realpath "${ENVIRONMENTS:-.}")

# Write the requirements for a version into a folder: the pinned ones, except Paddle and paddle2onnx.
write_requirements() {
  local version=$1 folder=$2
  rm -rf "$folder"
  mkdir -p "$folder"
  cp -r requirements.txt requirements "$folder"
  sed -i "s/^paddlepaddle==.*/paddlepaddle==$version/" "$folder/requirements/cpu.txt"
  if [[ $version == 2.* ]]; then  # paddle2onnx 2 links to libraries of Paddle 3
    sed -i "s/^paddle2onnx==.*/paddle2onnx==1.3.1/" "$folder/requirements/onnx.txt"
  fi
}

# Create or update the environment. The caller tests the exit code, so `set -e` is off here: each step checks the one
# before.
install() {
  local version=$1 environment=$2
  make --silent VENV="$environment" "$environment/bin/python" ${PYTHON:+PYTHON="$PYTHON"} || return
  write_requirements "$version" "$environment/wanted" || return
  if diff -rq "$environment/wanted" "$environment/installed" >/dev/null 2>&1; then return; fi
  echo "installing requirements with Paddle $version into $environment"
  local pip=("$environment/bin/python" -m pip install -qq --disable-pip-version-check)
  "${pip[@]}" -r "$environment/wanted/requirements.txt" -r "$environment/wanted/requirements/dev.txt" &&
    "${pip[@]}" --retries 1 -r "$environment/wanted/requirements/torch.txt" \
      -c "$environment/wanted/requirements/train.txt" &&
    "${pip[@]}" --no-deps -r "$environment/wanted/requirements/tests_apart.txt" &&
    rm -rf "$environment/installed" &&
    cp -r "$environment/wanted" "$environment/installed"
}

# The number of tests with a result, from pytest's summary, such as "3 failed, 812 passed, 20 skipped in 512.03s".
# Libraries may print more after it.
ended() {
  local log=$1 way=$2 count
  count=$(grep -E " in [0-9.]+s( \([0-9:]+\))?$" "$log" | tail -n 1 | grep -oE "[0-9]+ $way" || true)
  echo "${count%% *}"
}

table=$(printf '%-10s %8s %8s %8s %8s' Paddle passed failed errors skipped)
worst=0
for version in "${versions[@]}"; do
  environment=$environments/.venv-paddle-$version
  log=$environment/tests.log
  code=0
  if ! install "$version" "$environment"; then
    table+=$'\n'$(printf '%-10s could not be installed' "$version")
    worst=1
    continue
  fi
  "$environment/bin/python" -m pytest "${tests[@]}" 2>&1 | tee "$log" || code=$?
  if ((code > 1)); then
    table+=$'\n'$(printf '%-10s pytest stopped with exit code %s: see %s' "$version" "$code" "$log")
  else
    passed=$(ended "$log" passed) failed=$(ended "$log" failed)
    errors=$(ended "$log" 'errors?') skipped=$(ended "$log" skipped)
    table+=$'\n'$(printf '%-10s %8d %8d %8d %8d' \
      "$version" "${passed:-0}" "${failed:-0}" "${errors:-0}" "${skipped:-0}")
  fi
  ((code == 0)) || worst=1
done
echo
echo "$table"
exit "$worst"
