// The skinny products of the CUDA backend alone: whether they are right, and how fast beside the read stream of the
// same run.
// Run: tidal_bench_cuda_matrices [small] [check|layers|products|TYPE]...; all without arguments, bf16, q4_0 and q4_K of
// types; small: in the shapes of devices of 99 KiB of shared memory a block.
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

#include "backend/cuda/products/matmul_lt.h"
#include "matrices_check.cuh"
#include "matrices_fixture.cuh"

namespace {

constexpr int kRowCounts[] = {1, 2, 4, 5, 8, 16, 32, 64};

__global__ void read_stream(const uint4* data, size_t n, uint4* out) {
  uint4 a{};
  const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x; i + 7 * step < n; i += 8 * step) {
    uint4 v[8];
#pragma unroll
    for (int u = 0; u < 8; ++u) v[u] = __ldcs(data + i + u * step);
#pragma unroll
    for (int u = 0; u < 8; ++u) a.x ^= v[u].x ^ v[u].y ^ v[u].z ^ v[u].w;
  }
  if (a.x == 123456789u) *out = a;
}

double stream_rate() {
  const size_t bytes = size_t{4} << 30;
  const Device<uint4> data(bytes / 16), out(1);
  must(cudaMemset(data.data, 1, bytes));
  double best = 0;
  for (const int grid : {264, 528, 1056, 2112}) {
    const double ms = time_graph(2, [&](int) {
      read_stream<<<grid, 512, 0, stream>>>(data.data, bytes / 16, out.data);
      check_launch("read stream");
    });
    best = std::max(best, bytes / ms / 1e6);
  }
  return best;
}

/// One product, e.g. the logits, over so many copies of the matrix that none is still in the level-2 cache.
void product(const char* name, ggml_type type, int w_rows, int cols, double rate) {
  const size_t bytes = bytes_of(type, w_rows, cols);
  const int copies = static_cast<int>(std::max<size_t>(4, (size_t{1} << 30) / bytes));
  const Weights w(type, bytes * copies);
  Device<char> workspace(LtMatmul::kWorkspace);
  LtMatmul lt;
  for (const int rows : kRowCounts) {
    Random random;
    Input input(random.floats(static_cast<size_t>(rows) * cols, 2), std::vector<float>(cols, 1), rows);
    Device<float> y(static_cast<size_t>(rows) * w_rows);
    const int count = std::max(std::min(copies, 64), 16);
    const double skinny = time_graph(count, [&](int i) {
      SkinnyRows p;
      p.in = input.get(rows, cols, true, type != GGML_TYPE_BF16);
      p.w = w.at(bytes * (i % copies));
      p.y = y.data;
      p.rows = rows;
      p.cols = cols;
      p.w_rows = w_rows;
      launch_skinny_rows(p, stream);
    });
    const double floor = bytes / rate / 1e6;
    std::printf("%-8s %s %6d x %5d, %2d rows, normed: %7.2f us (%3.0f %% of the stream)", name, ggml_type_name(type),
                w_rows, cols, rows, skinny * 1e3, 100 * floor / skinny);
    if (type == GGML_TYPE_BF16) {
      const SkinnyInput in = input.rounded(rows, cols, false);
      const double library = time_graph(count, [&](int i) {
        lt.multiply({.x = in.rounded,
                     .w = reinterpret_cast<const Half*>(w.at(bytes * (i % copies)).data),
                     .y = y.data,
                     .rows = rows,
                     .cols = cols,
                     .w_rows = w_rows,
                     .stride = w_rows},
                    workspace.data, stream);
      });
      std::printf("; cuBLASLt alone %7.2f us", library * 1e3);
    }
    std::printf("\n");
  }
}

/// A layer's matrices in a row, as often as to be out of the level-2 cache.
struct Layers {
  static constexpr int kCount = 8;
  const char* name;
  ggml_type type;
  int width, q_width, kv_width, ffn;
  size_t q, kv, wo, gate, down, bytes;  // of its matrices, of a layer
  Weights w;

  Layers(const char* name, ggml_type type, int width, int q_width, int kv_width, int ffn)
      : name(name),
        type(type),
        width(width),
        q_width(q_width),
        kv_width(kv_width),
        ffn(ffn),
        q(bytes_of(type, q_width, width)),
        kv(bytes_of(type, kv_width, width)),
        wo(bytes_of(type, width, q_width)),
        gate(bytes_of(type, ffn, width)),
        down(bytes_of(type, width, ffn)),
        bytes(q + 2 * kv + wo + 2 * gate + down),
        w(type, bytes * kCount) {}
};

/// The products of whole layers in their order, as in a decode step without attention: microseconds a layer.
double time_layers(const Layers& l, int rows) {
  Random random;
  Input x(random.floats(static_cast<size_t>(rows) * l.width, 2), std::vector<float>(l.width, 1), rows);
  // What down and the output projection leave normed.
  const bool leaves = rows <= kSkinnyRows, quantised = l.type != GGML_TYPE_BF16;
  const Device<Half> normed(random.halves(static_cast<size_t>(rows) * l.width, 2));
  const Device<float> squares(random.floats(static_cast<size_t>(rows) * l.width / 16, 0.5f, 1));
  const Device<std::byte> scratch(skinny_packed_bytes(rows, std::max(l.width, l.ffn)));
  const auto input = [&] {
    if (!leaves) return x.get(rows, l.width, true, quantised);
    SkinnyInput in;
    in.scratch = scratch.data;
    in.rounded = normed.data;
    in.squares = squares.data;
    in.epsilon = 1e-5f;
    return in;
  };
  Input out(random.floats(static_cast<size_t>(rows) * l.q_width, 2), {}, rows);
  const Device<float> q(static_cast<size_t>(rows) * l.q_width);
  const Device<Half> hidden(static_cast<size_t>(rows) * l.ffn), kv(static_cast<size_t>(rows) * 64 * 2 * l.kv_width);
  const Device<float2> angles(std::vector<float2>(static_cast<size_t>(rows) * 64, make_float2(1, 0)));
  std::vector<int32_t> host_slots(rows);
  for (int r = 0; r < rows; ++r) host_slots[r] = 64 * r;
  const Device<int32_t> slots(host_slots);
  const auto layer = [&](int i) {
    const size_t at = l.bytes * (i % Layers::kCount);
    SkinnyQkv a;
    a.in = input();
    a.w[0] = l.w.at(at);
    a.w[1] = l.w.at(at + l.q);
    a.w[2] = l.w.at(at + l.q + l.kv);
    a.q = q.data;
    a.rows = rows;
    a.cols = l.width;
    a.q_width = l.q_width;
    a.kv_width = l.kv_width;
    a.fused = true;
    a.rope = {.angles = angles.data,
              .slots = slots.data,
              .kv = kv.data,
              .kv_heads = l.kv_width / 128,
              .head_dim = 128,
              .dims = 128};
    launch_skinny_qkv(a, stream);
    SkinnyRows b;
    b.in = out.get(rows, l.q_width, false, quantised);
    b.w = l.w.at(at + l.q + 2 * l.kv);
    b.y = x.x.data;
    b.rows = rows;
    b.cols = l.q_width;
    b.w_rows = l.width;
    if (leaves) b.next = {x.norm.data, normed.data, squares.data};
    launch_skinny_rows(b, stream);
    SkinnyGateUp c;
    c.in = input();
    c.gate = l.w.at(at + l.q + 2 * l.kv + l.wo);
    c.up = l.w.at(at + l.q + 2 * l.kv + l.wo + l.gate);
    c.hidden = hidden.data;
    c.rows = rows;
    c.cols = l.width;
    c.ffn = l.ffn;
    launch_skinny_gate_up(c, stream);
    b.in = {};
    b.in.rounded = hidden.data;
    b.in.scratch = scratch.data;
    b.w = l.w.at(at + l.bytes - l.down);
    b.cols = l.ffn;
    launch_skinny_rows(b, stream);
  };
  return 1e3 * time_graph(2 * Layers::kCount, layer);
}

void layers(const Layers& l, double rate) {
  const double floor = l.bytes / rate / 1e3;
  for (const int rows : kRowCounts) {
    const double us = time_layers(l, rows);
    std::printf("%s %s, %2d rows: %7.2f us a layer, floor %.2f (%.0f %% of the stream)\n", l.name,
                ggml_type_name(l.type), rows, us, floor, 100 * floor / us);
  }
}

void run(const std::vector<std::string>& parts) {
  cudaDeviceProp properties;
  must(cudaGetDeviceProperties(&properties, 0));
  must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  std::printf("%s, %d multiprocessors\n", properties.name, properties.multiProcessorCount);
  const Wanted wanted(parts, {GGML_TYPE_BF16, GGML_TYPE_Q4_0, GGML_TYPE_Q4_K});
  if (wanted("check")) check_all();
  if (!wanted("layers") && !wanted("products")) return;
  const double rate = stream_rate();
  std::printf("read stream %.0f GB/s\n", rate);
  for (const ggml_type type : wanted.types) {
    if (wanted("layers")) {
      layers({"llama-2-7b", type, 4096, 4096, 4096, 11008}, rate);
      layers({"llama-3-8b", type, 4096, 4096, 1024, 14336}, rate);
    }
    if (wanted("products")) {
      product("q, k, v", type, 12288, 4096, rate);
      product("output", type, 4096, 4096, rate);
      product("gate, up", type, 28672, 4096, rate);
      product("down", type, 4096, 14336, rate);
      product("logits", type, 128256, 4096, rate);
    }
  }
}

}  // namespace

int main(int count, char** arguments) {
  const int code = run_program(run, count, arguments);
  return code != 0 ? code : failures > 0;
}
