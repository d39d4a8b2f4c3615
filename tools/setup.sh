#!/usr/bin/env bash
# Makes a fresh Debian 12 or Ubuntu 24.04 machine ready to build and test tidal. Does only what is missing:
#   tools/setup.sh [MODEL...]   Debian packages, .deps/ with llama.cpp, and the named models (see get_model.sh)
# TIDAL_DEV=1 also installs what only ./test.sh needs (clang for the sanitizers, the fuzzer and the linters,
# googletest and google-benchmark, chromium).
set -euo pipefail
cd "$(dirname "$0")/.."

llama=0.3.36  # llama-cpp-python: builds and installs libllama, libggml, their headers and CMake packages

packages=(bible-kjv bible-kjv-text ca-certificates cmake g++ libcli11-dev libdnnl-dev libfmt-dev libhwy-dev
          ninja-build nlohmann-json3-dev ocl-icd-opencl-dev python3 python3-venv)  # OpenCL: dnnl's CMake package asks
if [[ ${TIDAL_DEV:-0} == 1 ]]; then
  packages+=(clang clang-format clang-tidy libbenchmark-dev libclang-rt-dev libgmock-dev libgtest-dev libomp-dev)
  # For the test of `tidal inspect`; Ubuntu has it only as a snap, and there the test is skipped.
  if grep -q '^ID=debian' /etc/os-release; then packages+=(chromium); fi
fi

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
if ((${#missing[@]})); then
  echo "setup: installing ${missing[*]}"
  as_root=()
  if ((EUID != 0)); then
    command -v sudo >/dev/null || { echo "setup: install as root: apt-get install ${missing[*]}" >&2; exit 1; }
    as_root=(sudo)
  fi
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" \
    >/dev/null
fi

stamp=.deps/llama-cpp-python-$llama
if [[ ! -e $stamp ]]; then
  echo "setup: building llama.cpp into .deps/ (once, a few minutes)"
  rm -rf .deps
  /usr/bin/python3 -m venv .deps
  CMAKE_ARGS="-DLLAVA_BUILD=OFF" CMAKE_BUILD_PARALLEL_LEVEL=$(nproc) \
    .deps/bin/pip install --quiet --disable-pip-version-check --no-deps "llama-cpp-python==$llama"
  touch "$stamp"
fi

tools/kjv.sh
for model in "$@"; do tools/get_model.sh "$model"; done
