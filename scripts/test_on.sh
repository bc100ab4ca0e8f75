#!/usr/bin/env bash
# Run the tests on a Python and a Paddle, in an environment that is kept:
#   scripts/test_on.sh PYTHON PADDLE [ARGUMENTS OF PYTEST]
#   scripts/test_on.sh 3.12 3.3.1
#   scripts/test_on.sh 3.9 2.6.2 tests/modeling/test_losses.py -q
# PYTHON is a version, looked for on PATH, among pyenv's and among uv's, or a path. ENVIRONMENTS is the folder of the
# environments (default: the checkout; 3 GB each). The last lines are the reasons of skipped tests, and a table row.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if (($# < 2)) || ! [[ $2 =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]]; then
  sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
python=$1 paddle=$2
tests=(tests -q -m "not slow")
if (($# > 2)); then tests=("${@:3}"); fi

find_python() {
  local each
  for each in "python$python" "$python" "$HOME/.pyenv/versions/$python"*/bin/python \
    "$(uv python find --no-python-downloads "$python" 2>/dev/null || true)"; do
    if [[ -n $each ]] && "$each" -c 'import sys, venv; sys.exit(sys.version_info < (3, 9))' >/dev/null 2>&1; then
      echo "$each"
      return
    fi
  done
  echo "error: no Python $python: install it, for example with uv python install $python" >&2
  return 2
}

interpreter=$(find_python)
version=$("$interpreter" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
environment=$(realpath "${ENVIRONMENTS:-.}")/.venv-on-$version-$paddle
log=$environment/tests.log

# The requirements for this Python, with this Paddle.
write_requirements() {
  rm -rf "$1"
  mkdir -p "$1"
  cp -r requirements.txt requirements "$1"
  if [[ $version =~ ^3\.(9|10|11)$ ]]; then mv "$1/requirements/conservative.txt" "$1/requirements.txt"; fi
  sed -i "s/^paddlepaddle==[^ ]*/paddlepaddle==$paddle/" "$1/requirements.txt"
  if [[ $paddle == 2.* ]]; then  # paddle2onnx 2 links to libraries of Paddle 3
    sed -i "s/^paddle2onnx[^;]*/paddle2onnx==1.3.1 /" "$1/requirements.txt" "$1/requirements/onnx.txt"
  fi
}

install() {
  [[ -x $environment/bin/python ]] || "$interpreter" -m venv --clear "$environment"
  local wanted=$environment/wanted
  write_requirements "$wanted"
  if diff -rq "$wanted" "$environment/installed" >/dev/null 2>&1; then return; fi
  echo "installing requirements with Paddle $paddle into $environment"
  local pip=("$environment/bin/python" -m pip install -qq --disable-pip-version-check)
  "${pip[@]}" -r "$wanted/requirements.txt" -r "$wanted/requirements/dev.txt"
  "${pip[@]}" --no-deps -r "$wanted/requirements/paddledet.txt" -r "$wanted/requirements/tests_apart.txt"
  "${pip[@]}" --retries 1 -r "$wanted/requirements/torch.txt" || echo "no PyTorch: its comparisons are skipped"
  rm -rf "$environment/installed"
  mv "$wanted" "$environment/installed"
}

# The number of tests with a result, from pytest's summary, such as "3 failed, 812 passed, 20 skipped in 512.03s".
count() {
  local number
  number=$(grep -E " in [0-9.]+s( \([0-9:]+\))?$" "$log" | tail -n 1 | grep -oE "[0-9]+ $1" || true)
  echo "${number:-0}" | cut -d " " -f 1
}

install
code=0
"$environment/bin/python" -m pytest "${tests[@]}" 2>&1 | tee "$log" || code=$?
echo
sed -n 's/^SKIPPED \[\([0-9]*\)\] [^ ]* /\1 /p' "$log" |
  awk '{n = $1; $1 = ""; sum[$0] += n} END {for (reason in sum) print "skipped " sum[reason] ":" reason}' | sort
printf '| Python | Paddle | passed | skipped | failed |\n|---|---|---|---|---|\n'
printf '| %s | %s | %s | %s | %s |\n' "$version" "$paddle" "$(count passed)" "$(count skipped)" \
  "$(($(count failed) + $(count 'errors?')))"
exit "$code"
