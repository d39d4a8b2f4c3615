#!/usr/bin/env bash
# Guess: a multiprocessor has 65,536 registers, so a kernel for one block of 544 threads, __launch_bounds__(544, 1), may
# have 120 a thread (65,536 / 544, in eights), a little less than one of 512 threads, which may have 128.
# Seen: nvcc gives it 96, as it does one of 640 threads, and spills the rest. A warp more than 16 costs a quarter of the
# registers, so a kernel of two groups of eight warps had better not have a warp beside them.
source "$(dirname "$0")/lib/packages.sh"
cd "$work"
packages nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96
"$python" - <<'PYTHON'
import pathlib
import re
import subprocess
import sys

import nvidia

nvcc = next(path for place in nvidia.__path__ for path in pathlib.Path(place).glob("*/bin/nvcc"))
KERNEL = """
extern "C" __global__ void __launch_bounds__(THREADS, 1) threads_THREADS(const float* from, float* to) {
  float values[200];
#pragma unroll
  for (int i = 0; i < 200; ++i) values[i] = from[i * 1024 + threadIdx.x];
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 200; ++i) sum = fmaf(sum, values[i], values[199 - i]);
  to[threadIdx.x] = sum;
}
"""
pathlib.Path("kernels.cu").write_text("".join(KERNEL.replace("THREADS", str(n)) for n in (512, 544, 640)))
told = subprocess.run([nvcc, "-arch=sm_90", "-Xptxas", "-v", "-cubin", "-o", "kernels.cubin", "kernels.cu"],
                      capture_output=True, text=True, check=True).stderr
version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
print("version: nvcc", re.search(r"V([\d.]+)", version)[1], "for sm_90")
seen = {int(n): int(r) for n, r in re.findall(r"function 'threads_(\d+)'.*?Used (\d+) registers", told, re.S)}
for threads, registers in sorted(seen.items()):
    print(f"seen: a block of {threads} threads: {registers} registers a thread, {65536 // threads // 8 * 8} expected")
sys.exit(0 if seen == {512: 128, 544: 96, 640: 96} else f"changed: {seen}")
PYTHON
