#!/usr/bin/env bash
# Builds tidal and runs every check on it, on a fresh Debian 12 or Ubuntu 24.04 machine too:
#   ./test.sh           all steps
#   ./test.sh STEP...   only these, e.g. ./test.sh setup build unit
#   ./test.sh vllm      what is no step of the whole: the tests inside vLLM
# Each step writes build/log/STEP.log. A failed step does not keep the others from running; the last line counts them.
set -o pipefail
cd "$(dirname "$0")" || exit 1

models=(smollm2-135m qwen2.5-coder-0.5b gemma3-270m)
fuzz_seconds=60
export CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}
export UBSAN_OPTIONS=print_stacktrace=1
if command -v ccache >/dev/null; then  # only saves time
  export CMAKE_C_COMPILER_LAUNCHER=ccache CMAKE_CXX_COMPILER_LAUNCHER=ccache
  export CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1 CCACHE_SLOPPINESS=pch_defines,time_macros
fi

skip() { echo "$1"; return 77; }

setup() { TIDAL_DEV=1 tools/setup.sh "${models[@]}"; }

# Code for one GPU architecture: the others take minutes and differ in nothing that a compiler could find here.
build() {
  cmake --preset release -DTIDAL_UNITY=ON -DCMAKE_CUDA_ARCHITECTURES="${CUDAARCHS:-90}" && cmake --build --preset release
}
# Threads of short tests that wait should sleep: spinning, they would take the cores from the test beside them.
short_tests() { OMP_WAIT_POLICY=passive ctest -j "$(nproc)" "$@"; }
unit() { short_tests --preset release -L '^unit$'; }
parity() { short_tests --preset release -L '^parity$'; }
golden() { ctest --preset release -L '^golden$' --verbose; }  # its log holds the figures
cli() { short_tests --preset release -L '^cli$'; }

# The kernel benchmarks must not rot: one of them, briefly.
kernels() {
  build/release/bench/tidal_bench_kernels --benchmark_filter=top_k --benchmark_min_time=0.01
}

# Another program uses an installed tidal.
example() {
  local to=$PWD/build/installed
  rm -rf "$to" build/example
  cmake --install build/release --prefix "$to" &&
    "$to/bin/tidal" info -m models/smollm2-135m.gguf &&
    cmake -S examples/generate -B build/example -G Ninja -DCMAKE_PREFIX_PATH="$to" -DCMAKE_BUILD_TYPE=Release &&
    cmake --build build/example &&
    build/example/generate models/smollm2-135m.gguf "The capital of France is" 8 | tee build/example/said &&
    grep -q Paris build/example/said || return
  # And a C program its attention alone.
  rm -rf build/example_attention
  cmake -S examples/attention -B build/example_attention -G Ninja -DCMAKE_PREFIX_PATH="$to" -DCMAKE_BUILD_TYPE=Release &&
    cmake --build build/example_attention &&
    build/example_attention/attention | tee build/example_attention/said &&
    grep -q 'the values say 321.0' build/example_attention/said
}

# A Python with what the tests of python/tidal_attention need, kept from run to run: torch takes minutes to come.
python_folder() {
  local list=python/tidal_attention/requirements-test.txt
  echo "${XDG_CACHE_HOME:-$HOME/.cache}/tidal/python-$(sha256sum $list | cut -c1-16)"
}
python_ready() {
  local folder
  folder=$(python_folder)
  [[ -e $folder/ready ]] && return
  rm -rf "$folder" && mkdir -p "$folder" && python3 -m venv "$folder" &&
    "$folder/bin/pip" install --quiet --disable-pip-version-check -r python/tidal_attention/requirements-test.txt &&
    touch "$folder/ready"
}
# The package as a user installs it; the folder of its build is as deep as others', so that ccache knows the sources.
python_tests() {
  local folder
  folder=$(python_folder)
  "$folder/bin/pip" install --quiet --disable-pip-version-check --no-build-isolation --no-deps --force-reinstall \
    --config-settings=cmake.define.TIDAL_CUDA=OFF --config-settings=build-dir="$PWD/build/python" ./python/tidal_attention &&
    TIDAL_ENGINE_SETS=$PWD/build/release/tests/engine_sets OMP_NUM_THREADS=2 GOMP_SPINCOUNT=0 PYTHONDONTWRITEBYTECODE=1 \
      "$folder/bin/python" -m pytest -p no:cacheprovider "$@"
}
python() {
  python_ready && python_tests python/tidal_attention/tests --ignore python/tidal_attention/tests/test_vllm.py
}
# vLLM itself, on the CPU. Not one of the steps below: it takes half an hour of two cores.
vllm() {
  python_ready || return
  local folder
  folder=$(python_folder)
  "$folder/bin/pip" install --quiet --disable-pip-version-check --no-deps -r python/tidal_attention/requirements-vllm.txt &&
    python_tests python/tidal_attention/tests/test_vllm.py
}

asan() { cmake --preset asan -DTIDAL_UNITY=ON && cmake --build --preset asan && short_tests --preset asan; }
tsan() { cmake --preset tsan -DTIDAL_UNITY=ON && cmake --build --preset tsan && short_tests --preset tsan; }

# The loader and what clients send, at the same time: each takes one processor. The second begins alike every time: what
# longer runs by hand (no -seed) find becomes a test, and no change fails by chance.
fuzz() {
  local limits=(-max_total_time=$fuzz_seconds -timeout=10 -rss_limit_mb=1024 -malloc_limit_mb=256 -max_len=32768
                -artifact_prefix=build/fuzz/ -print_final_stats=1)
  cmake --preset fuzz && cmake --build --preset fuzz && build/fuzz/tests/gguf_seeds build/fuzz/seeds || return
  mkdir -p build/fuzz/corpus build/fuzz/requests
  build/fuzz/tests/request_fuzz "${limits[@]}" -seed=1 -dict=tests/fuzz/http.dict build/fuzz/requests tests/fuzz/requests \
    >build/log/fuzz_requests.log 2>&1 &
  local requests=$!
  build/fuzz/tests/gguf_fuzz "${limits[@]}" -dict=tests/fuzz/gguf.dict build/fuzz/corpus build/fuzz/seeds
  local loader=$?
  wait $requests || { tail -n 40 build/log/fuzz_requests.log; return 1; }
  return $loader
}

sources() { git ls-files '*.cpp' '*.h' '*.cu' '*.cuh'; }

# Other versions format and warn otherwise; 14 is Debian 12's.
format() {
  command -v clang-format-14 >/dev/null || skip "needs clang-format-14" || return
  sources | xargs clang-format-14 --dry-run -Werror
}
tidy() {
  command -v clang-tidy-14 >/dev/null || skip "needs clang-tidy-14" || return
  # Room by room, so that headers are parsed once for all of its sources; without what GCC has precompiled, which clang
  # cannot read. What the build leaves out, for want of a CUDA compiler, is not looked at.
  cmake --preset release -B build/tidy -DTIDAL_UNITY=ON -DTIDAL_TESTS=OFF -DTIDAL_BENCH=OFF \
    -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON || return
  grep -oE '"file": "[^"]+"' build/tidy/compile_commands.json | cut -d'"' -f4 |
    grep -E "^$PWD/(src/.*\.cpp|build/tidy/src/.*/unity_[a-z_]*\.cxx)$" |
    xargs -P "$(nproc)" -n 1 clang-tidy-14 -p build/tidy --quiet --header-filter='/src/.*\.(h|cpp)$' \
      --checks=-bugprone-suspicious-include
}

steps=(setup build unit parity golden cli kernels example python asan tsan fuzz format tidy)
if (($#)); then steps=("$@"); fi

mkdir -p build/log
passed=0 failed=() skipped=0
for step in "${steps[@]}"; do
  [[ $(type -t "$step") == function ]] || { echo "test.sh: there is no step '$step'" >&2; exit 2; }
  log=build/log/$step.log start=$SECONDS
  "$step" </dev/null >"$log" 2>&1
  case $? in
    0) word=passed passed=$((passed + 1)) ;;
    77) word="skipped: $(tail -n 1 "$log")" skipped=$((skipped + 1)) ;;
    *) word=FAILED failed+=("$step") ;;
  esac
  printf '%-8s %4d s  %s' "$step" $((SECONDS - start)) "$word"
  grep -oE '[0-9]+ tests failed out of [0-9]+' "$log" | sed 's/^/  (/; s/$/)/' | tr -d '\n'
  echo
  if [[ $word == FAILED ]]; then tail -n 80 "$log" | sed 's/^/    /'; fi
done

echo "took $SECONDS s"
echo "$passed passed, ${#failed[@]} failed$( ((skipped)) && echo ", $skipped skipped")"
((${#failed[@]} == 0))
