#!/bin/sh
# Feed every reader of a stranger's bytes with mutated input; stops at the first crash.
#   fuzz.sh [--seconds N] [EXPORTED_FOLDER]      N in all (default 60); the folder gives seeds
set -eu
seconds=60
if [ "${1:-}" = --seconds ]; then
  seconds=$2
  shift 2
fi
case $seconds in '' | *[!0-9]*) echo "error: --seconds is '$seconds'; give a number" >&2; exit 2 ;; esac
seeds=${1:-}
here=$(cd "$(dirname "$0")" && pwd)
command -v clang++ >/dev/null || { echo "error: clang++ is not installed: $here/setup-debian.sh --tests" >&2; exit 3; }
build=${STAN_INFER_FUZZ_BUILD:-$here/build-fuzz}
cmake -S "$here" -B "$build" -DCMAKE_CXX_COMPILER=clang++ -DSTAN_INFER_FUZZ=ON -DCMAKE_BUILD_TYPE=None >/dev/null
targets="manifest npz onnx_file plan text tokenizer"
for target in $targets; do
  cmake --build "$build" --target "fuzz_$target" -j2 >/dev/null
done
set -- $targets
each=$((seconds / $# + 1))
for target in "$@"; do
  corpus=$build/corpus/$target
  mkdir -p "$corpus"
  if [ -n "$seeds" ]; then
    case $target in
      manifest) cp "$seeds/manifest.json" "$corpus" ;;
      npz) for f in "$seeds"/labels.npz; do [ -f "$f" ] && cp "$f" "$corpus"; done ;;
      plan) for f in "$seeds"/engines/*.json; do [ -f "$f" ] && cp "$f" "$corpus"; done ;;
      onnx_file) cp "$seeds/preprocess.onnx" "$corpus" ;;
      tokenizer) head -c 4000 "$seeds/tokenizer.json" >"$corpus/begin" ;;
      text) cp "$seeds/manifest.json" "$corpus" ;;
    esac
  fi
  echo "fuzz_$target: $each s"
  # allocator_may_return_null=0: asking for too much memory is a finding, too.
  "$build/fuzz/fuzz_$target" -max_total_time="$each" -max_len=65536 -rss_limit_mb=2048 -timeout=20 \
    -artifact_prefix="$build/$target-" "$corpus" >"$build/$target.log" 2>&1 || {
    tail -n 40 "$build/$target.log" >&2
    echo "error: fuzz_$target found the input above; it lies in $build" >&2
    exit 1
  }
done
