#!/usr/bin/env bash
# Makes a fresh Debian 12 or Ubuntu 24.04 machine ready to build and test tidal. Does only what is missing:
#   tools/setup.sh [MODEL...]   Debian packages, .deps/ with llama.cpp, and the named models (see get_model.sh)
# TIDAL_DEV=1 also installs what only ./test.sh needs (clang for the sanitizers, the fuzzer and the linters,
# googletest and google-benchmark, chromium).
set -euo pipefail
cd "$(dirname "$0")/.."

llama=0.3.36  # llama-cpp-python: builds and installs libllama, libggml, their headers and CMake packages

packages=(bible-kjv bible-kjv-text ca-certificates cmake g++ libboost-dev libcli11-dev libdnnl-dev libfmt-dev libhwy-dev
          libxxhash-dev ninja-build nlohmann-json3-dev python3 python3-venv
          ocl-icd-opencl-dev)  # dnnl's CMake package asks
if [[ ${TIDAL_DEV:-0} == 1 ]]; then
  packages+=(clang clang-format clang-tidy libbenchmark-dev libclang-rt-dev libgmock-dev libgtest-dev libomp-dev)
  # For the tests of the pages of `tidal inspect` and `tidal serve`; Ubuntu has it only as a snap, and there they are skipped.
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

stamp=.deps/llama-cpp-python-$llama-without-amx headers=.deps/llama-common-headers-$llama
if [[ ! -e $stamp || ! -e $headers ]]; then
  pip() { .deps/bin/pip --quiet --disable-pip-version-check "$@"; }
  if [[ ! -e $stamp ]]; then
    echo "setup: building llama.cpp into .deps/ (once, a few minutes)"
    rm -rf .deps
    /usr/bin/python3 -m venv .deps
  fi
  # The source package, once: pip builds from it, and what it does not install is unpacked from it: the headers of
  # libllama-common (Jinja for chat templates) beside llama.h, and chat templates for the tests.
  source=.deps/source
  rm -rf $source
  pip download --no-deps --no-binary llama-cpp-python --dest $source "llama-cpp-python==$llama"
  package=$(ls $source/*.tar.gz)
  if [[ ! -e $stamp ]]; then
    # Without AMX: GCC 12 (Debian 12) tells the processor of 8 bytes of the 64 that configure its tiles, so that a
    # library built for a processor that has them ends in an illegal instruction at the first quantised weight.
    no_amx=-U__AMX_INT8__
    CMAKE_ARGS="-DLLAVA_BUILD=OFF -DCMAKE_C_FLAGS=$no_amx -DCMAKE_CXX_FLAGS=$no_amx" \
      CMAKE_BUILD_PARALLEL_LEVEL=$(nproc) pip install --no-deps "$package"
    touch "$stamp"
  fi
  prefix=$(dirname .deps/lib/python3*/site-packages/include/llama.h)
  tar -xzf "$package" -C $source --strip-components=3 --wildcards \
    '*/vendor/llama.cpp/common/*.h' '*/vendor/llama.cpp/models/templates/*.jinja'
  rm -rf "$prefix/llama-common" .deps/share/llama.cpp
  mkdir -p .deps/share/llama.cpp
  mv $source/common "$prefix/llama-common"
  mv $source/models/templates .deps/share/llama.cpp/templates
  rm -rf $source
  pip install --no-deps jinja2==3.1.6 markupsafe==3.0.3  # what the tests hold our prompts against
  touch "$headers"
fi

# The clients that the server is tested with, apart from llama.cpp.
clients=.deps/clients stamp=.deps/clients/$(cksum <tests/clients/requirements.txt | cut -d' ' -f1)
if [[ ${TIDAL_DEV:-0} == 1 && ! -e $stamp ]]; then
  rm -rf $clients
  /usr/bin/python3 -m venv $clients
  $clients/bin/pip --quiet --disable-pip-version-check install --no-deps -r tests/clients/requirements.txt
  touch "$stamp"
fi

tools/kjv.sh
for model in "$@"; do tools/get_model.sh "$model"; done
