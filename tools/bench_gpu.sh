#!/usr/bin/env bash
# Measures decode steps on the GPU, tidal (bf16, q4_0) and PyTorch one after the other on the same device, and prints
# their ratios:
#   tools/bench_gpu.sh [--tidal FILE] [--output DIR] [--attention cudnn,flash]
# FILE: the program (build/release/src/tidal). DIR gets the rows as JSON lines (build/bench_gpu). --attention: what
# PyTorch's attention is timed with. Takes a minute or two; needs a python3 with torch for CUDA and a C compiler.
set -euo pipefail
cd "$(dirname "$0")/.."

tidal=build/release/src/tidal output=build/bench_gpu attention=cudnn,flash
while (($#)); do
  case $1 in
    --tidal) tidal=${2:?bench_gpu: --tidal needs a file}; shift 2 ;;
    --output) output=${2:?bench_gpu: --output needs a folder}; shift 2 ;;
    --attention) attention=${2:?bench_gpu: --attention needs cudnn, flash or both}; shift 2 ;;
    -h | --help) sed -n '2,6s/^# //p' "$0"; exit 0 ;;
    *) echo "bench_gpu: '$1' is not known, expected --tidal, --output or --attention" >&2; exit 1 ;;
  esac
done

complain() { echo "bench_gpu: $1" >&2; exit 1; }
[[ -x $tidal ]] || complain "there is no program '$tidal', build it or name it with --tidal"
command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU ||
  complain "there is no NVIDIA GPU on this machine (nvidia-smi lists none)"
command -v python3 >/dev/null || complain "python3 is missing, expected one with torch for CUDA"
python3 -c 'import torch' 2>/dev/null || complain "PyTorch is missing, expected a python3 with torch for CUDA"
python3 -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null ||
  complain "PyTorch finds no GPU: torch.cuda.is_available() is false"
command -v "${CC:-cc}" >/dev/null || command -v gcc >/dev/null || command -v clang >/dev/null ||
  complain "a C compiler is missing, torch.compile needs one (CC names it)"

mkdir -p "$output"
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-/tmp/tidal_triton} TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-/tmp/tidal_inductor}
kinds=full,tidal,sketch
depths=10240,32768,102400
bench() {
  "$tidal" bench --backend cuda -p 0 -n 16 -r 3 --fill random --attention "$kinds" -o jsonl --details "$@"
}

nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,power.limit --format=csv,noheader
: >"$output/tidal.jsonl"
for shape in llama-2-7b llama-3-8b; do
  echo "bench_gpu: tidal, $shape"
  bench --shape "$shape" --type bf16 -d "$depths" >>"$output/tidal.jsonl"
done
: >"$output/tidal_q4_0.jsonl"
for shape in llama-2-7b llama-3-8b; do
  echo "bench_gpu: tidal, $shape, q4_0"
  bench --shape "$shape" --type q4_0 -d "$depths" >>"$output/tidal_q4_0.jsonl"
done
# One by one: 16 sequences of this length do not fit on every device.
for batch in 8 16; do
  echo "bench_gpu: tidal, llama-3-8b, batch $batch"
  bench --shape llama-3-8b --type bf16 -d 32768 -b "$batch" >>"$output/tidal.jsonl" || echo "bench_gpu: batch $batch was left out"
done
cases=()
for shape in llama-2-7b llama-3-8b; do
  for depth in ${depths//,/ }; do cases+=("$shape:1:$depth"); done
done
echo "bench_gpu: torch"
python3 tools/torch_decode.py --attention "$attention" "${cases[@]}" llama-3-8b:8:32768 llama-3-8b:16:32768 \
  >"$output/torch.jsonl"
echo
python3 tools/gpu_ratios.py "$output/tidal.jsonl" "$output/torch.jsonl" | tee "$output/ratios.md"
echo
echo "tidal with weights in q4_0, PyTorch in bf16 as before:"
python3 tools/gpu_ratios.py "$output/tidal_q4_0.jsonl" "$output/torch.jsonl" | tee "$output/ratios_q4_0.md"
