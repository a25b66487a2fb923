#!/usr/bin/env bash
# Checks every kernel on a GPU against the reference, then measures: scripts/gpu_run.sh [FOLDER] [MINUTES]
#
# Leaves in FOLDER (results/gpu): checks.txt, sanitizer.txt, ops.jsonl, large.jsonl and growth.jsonl. What it has no time
# for in MINUTES (9.5) is said; the files of results go on where they were when it is called again.
set -uo pipefail
cd "$(dirname "$0")/.."
folder=${1:-results/gpu} minutes=${2:-9.5}
python=${PYTHON:-python3}
began=$(date +%s)
mkdir -p "$folder"

left() { # seconds, as many as SHARE of what is left
  awk -v b="$began" -v m="$minutes" -v now="$(date +%s)" -v s="$1" 'BEGIN { t = (b + 60 * m - now) * s; print (t > 1 ? int(t) : 1) }'
}
louiskv=("$python" -m louiskv.cli)
stage() { echo; echo "== $1, after $(( $(date +%s) - began )) s"; }

failed=0
parallel=$("$python" -c 'import importlib.util as u; import os; print(f"-n {min(14, os.cpu_count())}" if u.find_spec("xdist") else "")')

stage "every operation against its reference"
# All that runs on the device: what names it, and files whose tensors lie there where it is.
on_device="(cuda or triton or waits_for_nothing or test_generation) and not compile"
# shellcheck disable=SC2086
timeout -s INT -k 10 "$(left 0.3)" "$python" -m pytest -q $parallel -p no:cacheprovider -p no:benchmark -k "$on_device" \
  tests/ops tests/methods/test_waits_for_nothing.py tests/test_generation.py > "$folder/checks.txt" 2>&1
code=$?
(( code == 0 )) || failed=1
grep -E "^(FAILED|ERROR)|passed|failed" "$folder/checks.txt" | tail -20
! grep -q KeyboardInterrupt "$folder/checks.txt" || echo "time was up: not all of them ran"

stage "the small sizes again, every access to memory watched"
if command -v compute-sanitizer > /dev/null; then
  # Once without, which compiles.
  for part in 0 1 2 3 4 5 6 7; do
    timeout "$(left 0.2)" "$python" scripts/gpu_small.py $part 8 > /dev/null 2>&1 &
  done
  wait
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout "$(left 0.25)" compute-sanitizer --tool memcheck --error-exitcode 9 \
    "$python" scripts/gpu_small.py > "$folder/sanitizer.txt" 2>&1 || failed=1
  grep -E "ERROR SUMMARY|passed|Error|Invalid" "$folder/sanitizer.txt" | tail -5
else
  echo "there is no compute-sanitizer here" | tee "$folder/sanitizer.txt"
  failed=1
fi

stage "each operation beside what the machine can do"
timeout "$(left 0.2)" "${louiskv[@]}" bench ops --shape llama8b --device cuda --context 32768 --budget 1024 --quick \
  --output "$folder/ops.jsonl" > "$folder/ops.txt" 2>&1 || failed=1
tail -60 "$folder/ops.txt"

large() { # SHARE of what is left, file, and options
  local share=$1 file=$2
  shift 2
  # Where the device has failed, what comes behind that is measured by another process.
  for _ in 1 2 3; do
    "${louiskv[@]}" bench large --dtype bfloat16 --device cuda --output "$folder/$file.jsonl" "$@" \
      --minutes "$(awk -v s="$(left "$share")" 'BEGIN { print s / 60 }')" > "$folder/$file.txt"
    local code=$?
    (( code == 0 )) || failed=1
    (( code == 1 )) || break
  done
  grep -v "left out" "$folder/$file.txt"
}

stage "decoding and first tokens of large shapes"
large 0.65 large --shape llama-3.1-8b

stage "what the device holds along an output of 16384 tokens"
large 0.55 growth --layers 4 --grow 16384 --method louiskv:tau=0.7 --method louiskv_plus --no-sdpa

stage "another shape"
large 0.9 large --shape qwen3-8b

stage "done"
exit $failed
