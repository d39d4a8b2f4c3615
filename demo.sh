#!/usr/bin/env bash
# Asks a model for a pass key that is hidden in a long text, with full and with tidal attention, beside llama.cpp:
#   ./demo.sh [--model NAME|FILE] [--length TOKENS] [-- flags of `tidal compare`]
# NAME is one of tools/get_model.sh. A first run on a fresh Debian 12 or Ubuntu 24.04 machine installs what is missing.
set -euo pipefail
cd "$(dirname "$0")"

model=qwen2.5-coder-0.5b length=8192
while (($#)); do
  case $1 in
    --model) model=${2:?demo: --model needs a name or a file}; shift 2 ;;
    --length) length=${2:?demo: --length needs a number of tokens}; shift 2 ;;
    --) shift; break ;;
    -h | --help) sed -n '2,4s/^# //p' "$0"; exit 0 ;;
    *) echo "demo: '$1' is not known, expected --model, --length or --" >&2; exit 1 ;;
  esac
done
[[ $length =~ ^[0-9]+$ ]] && ((length >= 256)) || { echo "demo: --length is '$length', expected 256 or more" >&2; exit 1; }

if [[ -f $model ]]; then
  tools/setup.sh
  file=$model
else
  tools/setup.sh "$model"
  file=models/$model.gguf
fi
echo "demo: building"
mkdir -p build/log
{ cmake -S . -B build/demo -G Ninja -DTIDAL_TESTS=OFF && cmake --build build/demo; } >build/log/demo.log 2>&1 ||
  { tail -n 30 build/log/demo.log >&2; echo "demo: the build failed, see build/log/demo.log" >&2; exit 1; }

# A token of this text is 3.75 bytes long; the question and the template take about 100 tokens.
key=$((10000 + RANDOM % 90000))
document=$(mktemp)
trap 'rm -f "$document"' EXIT
bytes=$(((length - 100) * 15 / 4))
{
  head -c $((bytes * 2 / 3)) models/kjv.txt
  printf '\nThe pass key is %s. Remember it. %s is the pass key.\n' "$key" "$key"
  head -c "$bytes" models/kjv.txt | tail -c $((bytes / 3))
} | iconv -c -t UTF-8 >"$document"

echo "demo: a text of about $length tokens says somewhere: the pass key is $key"
build/demo/src/tidal compare -m "$file" -f "$document" -p "What is the pass key hidden in the text above?" \
  --baseline llama.cpp "$@"
