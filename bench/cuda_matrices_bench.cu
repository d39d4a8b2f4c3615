// The skinny products of the CUDA backend alone: right against a double loop on the host and against cuBLASLt, the same
// bits whatever the company, and how fast. Prints GB/s beside the read stream of the same run.
//
// Build, in the repository (the C++ files apart, since {fmt} is not for nvcc):
//   for f in launch device matmul_lt; do
//     g++ -std=c++20 -O2 -DFMT_HEADER_ONLY -I src -I /usr/local/cuda/include -c src/backend/cuda/$f.cpp -o build/$f.o;
//     done
//   nvcc -std=c++20 -O3 -arch=sm_90 -I src -o build/cuda_matrices_bench bench/cuda_matrices_bench.cu
//     src/backend/cuda/matmul_{skinny,chain}.cu src/backend/cuda/elementwise.cu build/{launch,device,matmul_lt}.o -ldl
// Run: cuda_matrices_bench [check|speed|chain|tune|no-carveout]...; the first three without arguments. `tune` compares
// ways to launch products of few rows; `no-carveout` leaves the division of a multiprocessor's memory to the driver.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "backend/cuda/elementwise.h"
#include "backend/cuda/error.h"
#include "backend/cuda/matmul_lt.h"
#include "backend/cuda/matmul_skinny.h"

namespace {

using namespace tidal::cuda;  // NOLINT: a program of one file
using Half = __nv_bfloat16;

cudaStream_t stream;
int failures = 0;

void must(cudaError_t code) { check(code, "the benchmark"); }

template <typename T>
struct Device {
  T* data = nullptr;
  size_t count = 0;

  explicit Device(size_t n) : count(n) { must(cudaMalloc(&data, std::max<size_t>(n, 64) * sizeof(T))); }
  explicit Device(const std::vector<T>& host) : Device(host.size()) {
    must(cudaMemcpy(data, host.data(), count * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~Device() { cudaFree(data); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  std::vector<T> read() const {
    must(cudaStreamSynchronize(stream));
    std::vector<T> host(count);
    must(cudaMemcpy(host.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost));
    return host;
  }
};

struct Random {
  uint64_t state = 1;
  float operator()() {  // -1 to 1
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<float>(static_cast<int32_t>(state >> 32)) * 0x1p-31f;
  }
  std::vector<float> floats(size_t n, float scale, float centre = 0) {
    std::vector<float> v(n);
    for (float& x : v) x = centre + scale * (*this)();
    return v;
  }
  std::vector<Half> halves(size_t n, float scale) {
    std::vector<Half> v(n);
    for (Half& x : v) x = __float2bfloat16(scale * (*this)());
    return v;
  }
};

__global__ void fill(Half* data, size_t n) {
  for (size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x; i < n;
       i += static_cast<size_t>(gridDim.x) * blockDim.x) {
    data[i] = __float2bfloat16(static_cast<float>((static_cast<uint32_t>(i) * 2654435761u) >> 20) * 1e-5f - 0.02f);
  }
}

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

double rounded(double value) { return __bfloat162float(__float2bfloat16(static_cast<float>(value))); }

void report(const char* what, double worst, double allowed) {
  const bool good = worst <= allowed;
  failures += !good;
  std::printf("  %-58s %.2e of %.2e %s\n", what, worst, allowed, good ? "ok" : "WRONG");
}
void report_bits(const char* what, size_t different) {
  failures += different > 0;
  std::printf("  %-58s %zu different bits %s\n", what, different, different ? "WRONG" : "ok");
}

template <typename T>
size_t differing(const std::vector<T>& a, const std::vector<T>& b, size_t from, size_t of_b, size_t n) {
  size_t result = 0;
  for (size_t i = 0; i < n; ++i) result += std::memcmp(&a.at(from + i), &b.at(of_b + i), sizeof(T)) != 0;
  return result;
}

/// x [rows, cols] as products see it, in double: normed by `norm` when not empty; rounded to bf16 where the kernel
/// does.
struct HostInput {
  std::vector<double> values, factors;
  HostInput(const std::vector<float>& x, const std::vector<float>& norm, int rows, int cols, double epsilon)
      : values(x.size()), factors(rows, 1.0) {
    for (int r = 0; r < rows; ++r) {
      double squares = 0;
      for (int i = 0; i < cols; ++i) {
        const float v = x[static_cast<size_t>(r) * cols + i];
        squares += static_cast<double>(v) * v;
        values[static_cast<size_t>(r) * cols + i] = rounded(norm.empty() ? v : v * norm[i]);
      }
      if (!norm.empty()) factors[r] = 1 / std::sqrt(squares / cols + epsilon);
    }
  }
};

double dot(const std::vector<Half>& w, size_t row, const HostInput& x, int r, int cols) {
  double sum = 0;
  for (int i = 0; i < cols; ++i) {
    sum += static_cast<double>(__bfloat162float(w[row * cols + i])) * x.values[static_cast<size_t>(r) * cols + i];
  }
  return sum * x.factors[r];
}

/// What a product takes, made the way the backend makes it.
struct Input {
  Device<float> x, norm, factors;
  Device<Half> rounded_x;
  Input(const std::vector<float>& host_x, const std::vector<float>& host_norm, int rows)
      : x(host_x), norm(host_norm), factors(rows), rounded_x(host_x.size()) {}
  SkinnyInput get(int first, int rows, int cols, bool with_norm, bool floats) {
    SkinnyInput in;
    const float* from = x.data + static_cast<size_t>(first) * cols;
    if (floats) {
      in.x = from;
      in.norm = with_norm ? norm.data : nullptr;
      in.epsilon = 1e-5f;
      return in;
    }
    launch_round({.x = from,
                  .norm = with_norm ? norm.data : nullptr,
                  .epsilon = 1e-5f,
                  .rows = rows,
                  .cols = cols,
                  .rounded = rounded_x.data,
                  .factors = factors.data},
                 stream);
    in.rounded = rounded_x.data;
    in.factors = with_norm ? factors.data : nullptr;
    return in;
  }
};

void check_rows(int w_rows, int cols) {
  std::printf("product %d x %d\n", w_rows, cols);
  Random random;
  const int most = 70;
  const auto w = random.halves(static_cast<size_t>(w_rows) * cols, 0.1f);
  const auto x = random.floats(static_cast<size_t>(most) * cols, 2);
  const auto norm = random.floats(cols, 0.3f, 1), bias = random.floats(w_rows, 1);
  const auto before = random.floats(static_cast<size_t>(most) * w_rows, 1);
  const Device<Half> dw(w);
  const Device<float> dbias(bias);
  const HostInput host(x, norm, most, cols, 1e-5);
  std::vector<float> alone(before.size());
  for (const int rows : {1, 2, 4, 5, 8, 9, 16, 17, 32, 33, 64, 70}) {
    Input input(x, norm, most);
    Device<float> y(before);
    SkinnyRows p;
    p.in = input.get(0, rows, cols, true, rows <= kFusedRows);
    p.w = dw.data;
    p.bias = dbias.data;
    p.y = y.data;
    p.rows = rows;
    p.cols = cols;
    p.w_rows = w_rows;
    p.add = true;
    launch_skinny_rows(p, stream);
    const auto got = y.read();
    double worst = 0;
    for (int r = 0; r < rows; ++r) {
      for (int o = 0; o < w_rows; o += std::max(1, w_rows / 97)) {
        const size_t at = static_cast<size_t>(r) * w_rows + o;
        worst = std::max(worst, std::abs(dot(w, o, host, r, cols) + bias[o] + before[at] - got[at]));
      }
    }
    // Sums of `cols` products of about 0.1 in float32.
    report(("rows " + std::to_string(rows)).c_str(), worst, 1e-6 * std::sqrt(cols) * 4);
    report_bits("  rows behind stay",
                differing(got, before, static_cast<size_t>(rows) * w_rows, static_cast<size_t>(rows) * w_rows,
                          static_cast<size_t>(most - rows) * w_rows));
    if (rows == 1) {
      for (int r = 0; r < most; ++r) {
        Device<float> one(std::vector<float>(before.begin() + static_cast<size_t>(r) * w_rows,
                                             before.begin() + static_cast<size_t>(r + 1) * w_rows));
        SkinnyRows q = p;
        q.in.x = input.x.data + static_cast<size_t>(r) * cols;
        q.y = one.data;
        launch_skinny_rows(q, stream);
        const auto values = one.read();
        std::copy(values.begin(), values.end(), alone.begin() + static_cast<size_t>(r) * w_rows);
      }
    }
    report_bits("  each row as alone", differing(got, alone, 0, 0, static_cast<size_t>(rows) * w_rows));
  }
}

void check_lt(int w_rows, int cols, int rows) {
  Random random;
  const auto w = random.halves(static_cast<size_t>(w_rows) * cols, 0.1f);
  const auto x = random.floats(static_cast<size_t>(rows) * cols, 2);
  const Device<Half> dw(w);
  Input input(x, std::vector<float>(cols, 1), rows);
  const SkinnyInput in = input.get(0, rows, cols, false, false);
  Device<float> y(static_cast<size_t>(rows) * w_rows), z(static_cast<size_t>(rows) * w_rows);
  Device<char> workspace(LtMatmul::kWorkspace);
  LtMatmul lt;
  lt.multiply(
      {.x = in.rounded, .w = dw.data, .y = y.data, .rows = rows, .cols = cols, .w_rows = w_rows, .stride = w_rows},
      workspace.data, stream);
  SkinnyRows p;
  p.in = in;
  p.w = dw.data;
  p.y = z.data;
  p.rows = rows;
  p.cols = cols;
  p.w_rows = w_rows;
  launch_skinny_rows(p, stream);
  const auto a = y.read(), b = z.read();
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::abs(static_cast<double>(a[i]) - b[i]));
  char what[80];
  std::snprintf(what, sizeof(what), "cuBLASLt against skinny, %d x %d, %d rows", w_rows, cols, rows);
  report(what, worst, 1e-6 * std::sqrt(cols) * 4);
}

void check_gate_up(int ffn, int cols) {
  std::printf("gate and up %d x %d\n", ffn, cols);
  Random random;
  const int most = 40;
  const auto gate = random.halves(static_cast<size_t>(ffn) * cols, 0.1f);
  const auto up = random.halves(static_cast<size_t>(ffn) * cols, 0.1f);
  const auto x = random.floats(static_cast<size_t>(most) * cols, 2), norm = random.floats(cols, 0.3f, 1);
  const auto bias = random.floats(ffn, 0.5f);
  const Device<Half> dgate(gate), dup(up);
  const Device<float> dbias(bias);
  const HostInput host(x, norm, most, cols, 1e-5);
  std::vector<Half> alone;
  for (const int rows : {-1, 1, 3, 8, 16, 23, 40}) {
    if (rows < 0) {
      for (int r = 0; r < most; ++r) {
        Input input(x, norm, most);
        Device<Half> hidden(ffn);
        SkinnyGateUp p;
        p.in = input.get(r, 1, cols, true, true);
        p.gate = dgate.data;
        p.up = dup.data;
        p.gate_bias = dbias.data;
        p.hidden = hidden.data;
        p.rows = 1;
        p.cols = cols;
        p.ffn = ffn;
        launch_skinny_gate_up(p, stream);
        const auto one = hidden.read();
        alone.insert(alone.end(), one.begin(), one.end());
      }
      continue;
    }
    Input input(x, norm, most);
    Device<Half> hidden(static_cast<size_t>(most) * ffn);
    SkinnyGateUp p;
    p.in = input.get(0, rows, cols, true, rows <= kFusedRows);
    p.gate = dgate.data;
    p.up = dup.data;
    p.gate_bias = dbias.data;
    p.hidden = hidden.data;
    p.rows = rows;
    p.cols = cols;
    p.ffn = ffn;
    launch_skinny_gate_up(p, stream);
    const auto got = hidden.read();
    double worst = 0;
    for (int r = 0; r < rows; ++r) {
      for (int o = 0; o < ffn; o += std::max(1, ffn / 97)) {
        const double g = dot(gate, o, host, r, cols) + bias[o], u = dot(up, o, host, r, cols);
        const double want = g / (1 + std::exp(-g)) * u;
        const double error = std::abs(want - __bfloat162float(got[static_cast<size_t>(r) * ffn + o]));
        worst = std::max(worst, error / (std::abs(want) + 1e-2));
      }
    }
    report(("rows " + std::to_string(rows)).c_str(), worst, 0x1p-8 + 1e-3);
    report_bits("  each row as alone", differing(got, alone, 0, 0, static_cast<size_t>(rows) * ffn));
  }
}

void check_qkv(int heads, int kv_heads, int dim, int dims, int cols, bool halves) {
  std::printf("q, k, v: %d and %d heads of %d, %d rotated, %s, width %d\n", heads, kv_heads, dim, dims,
              halves ? "halves" : "adjacent", cols);
  Random random;
  const int rows = 29, q_width = heads * dim, kv_width = kv_heads * dim, blocks = 3;
  const auto x = random.floats(static_cast<size_t>(rows) * cols, 2), norm = random.floats(cols, 0.3f, 1);
  const Device<Half> wq(random.halves(static_cast<size_t>(q_width) * cols, 0.1f));
  const Device<Half> wk(random.halves(static_cast<size_t>(kv_width) * cols, 0.1f));
  const Device<Half> wv(random.halves(static_cast<size_t>(kv_width) * cols, 0.1f));
  const Device<float> bq(random.floats(q_width, 1)), bk(random.floats(kv_width, 1)), bv(random.floats(kv_width, 1));
  std::vector<float2> angles(static_cast<size_t>(rows) * dims / 2);
  for (size_t i = 0; i < angles.size(); ++i) {
    angles[i] = make_float2(static_cast<float>(std::cos(0.1 * i)), static_cast<float>(std::sin(0.1 * i)));
  }
  std::vector<int32_t> slots(rows);
  for (int r = 0; r < rows; ++r) slots[r] = (r * 37 + 5) % (blocks * 64);
  const Device<float2> dangles(angles);
  const Device<int32_t> dslots(slots);
  const size_t cache = static_cast<size_t>(blocks) * kv_heads * 64 * 2 * dim;
  Input input(x, norm, rows);
  Device<float> q(static_cast<size_t>(rows) * q_width), q2(static_cast<size_t>(rows) * q_width);
  Device<float> k_raw(static_cast<size_t>(rows) * kv_width), v_raw(static_cast<size_t>(rows) * kv_width);
  Device<Half> kv(std::vector<Half>(cache, __float2bfloat16(7.0f)));
  Device<Half> kv2(std::vector<Half>(cache, __float2bfloat16(7.0f)));
  Device<Half> kv3(std::vector<Half>(cache, __float2bfloat16(7.0f)));
  Device<float> q3(static_cast<size_t>(rows) * q_width);

  SkinnyQkv p;
  p.in = input.get(0, rows, cols, true, false);
  p.w[0] = wq.data;
  p.w[1] = wk.data;
  p.w[2] = wv.data;
  p.rows = rows;
  p.cols = cols;
  p.q_width = q_width;
  p.kv_width = kv_width;
  SkinnyQkv raw = p;
  p.bias[0] = bq.data;
  p.bias[1] = bk.data;
  p.bias[2] = bv.data;
  p.q = q.data;
  p.fused = true;
  p.rope = {.angles = dangles.data,
            .slots = dslots.data,
            .kv = kv.data,
            .kv_heads = kv_heads,
            .head_dim = dim,
            .dims = dims,
            .halves = halves};
  launch_skinny_qkv(p, stream);
  for (int r = 0; r < rows; ++r) {
    SkinnyQkv one = p;
    one.in = input.get(r, 1, cols, true, true);
    one.rows = 1;
    one.q = q3.data + static_cast<size_t>(r) * q_width;
    one.rope.kv = kv3.data;
    one.rope.angles = dangles.data + static_cast<size_t>(r) * dims / 2;
    one.rope.slots = dslots.data + r;
    launch_skinny_qkv(one, stream);
  }
  raw.q = q2.data;
  raw.k_raw = k_raw.data;
  raw.v_raw = v_raw.data;
  launch_skinny_qkv(raw, stream);
  RopeAppendParams rope{.q_raw = q2.data,
                        .k_raw = k_raw.data,
                        .v_raw = v_raw.data,
                        .q_stride = q_width,
                        .kv_stride = kv_width,
                        .bias = {bq.data, bk.data, bv.data},
                        .angles = dangles.data,
                        .slots = dslots.data,
                        .q = q2.data,
                        .kv = kv2.data,
                        .rows = rows,
                        .heads = heads,
                        .kv_heads = kv_heads,
                        .head_dim = dim,
                        .dims = dims,
                        .halves = halves};
  launch_rope_append(rope, stream);
  const auto a = q.read(), b = q2.read();
  double worst = 0, worst_kv = 0;
  for (size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::abs(static_cast<double>(a[i]) - b[i]));
  report("q, rotated inside against rope_append()", worst, 1e-4);
  const auto q_alone = q3.read();
  report_bits("  q of each row as alone", differing(a, q_alone, 0, 0, a.size()));
  const auto c = kv.read(), d = kv2.read(), kv_alone = kv3.read();
  report_bits("  cache as of each row alone", differing(c, kv_alone, 0, 0, c.size()));
  size_t written = 0;
  for (size_t i = 0; i < c.size(); ++i) {
    const double one = __bfloat162float(c[i]), two = __bfloat162float(d[i]);
    written += one != 7;
    worst_kv = std::max(worst_kv, std::abs(one - two) / (std::abs(two) + 0.1));
  }
  report("cache, the same", worst_kv, 0x1p-7);
  const double share = static_cast<double>(written) / (static_cast<double>(rows) * 2 * kv_width);
  report("cache, share of elements that was not written", std::abs(1 - share), 0.02);
}

/// Milliseconds of one launch of `body(i)`, i = 0 .. count - 1, as one graph; median of 9.
double time_graph(int count, const std::function<void(int)>& body) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  for (int i = 0; i < std::min(count, 2); ++i) body(i);  // loads the code
  must(cudaStreamSynchronize(stream));
  must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < count; ++i) body(i);
  must(cudaStreamEndCapture(stream, &graph));
  must(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t begin, end;
  must(cudaEventCreate(&begin));
  must(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < 12; ++i) {
    must(cudaEventRecord(begin, stream));
    must(cudaGraphLaunch(exec, stream));
    must(cudaEventRecord(end, stream));
    must(cudaEventSynchronize(end));
    float ms = 0;
    must(cudaEventElapsedTime(&ms, begin, end));
    if (i > 2) times.push_back(ms);
  }
  must(cudaGraphExecDestroy(exec));
  must(cudaGraphDestroy(graph));
  must(cudaEventDestroy(begin));
  must(cudaEventDestroy(end));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2] / count;
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

/// Products one behind the other over so many copies of the matrix that none is still in the level-2 cache.
void speed(int w_rows, int cols, double rate) {
  const size_t elements = static_cast<size_t>(w_rows) * cols;
  const int copies = static_cast<int>(std::max<size_t>(4, (size_t{1} << 30) / (elements * 2)));
  const Device<Half> w(elements * copies);
  fill<<<2048, 256, 0, stream>>>(w.data, elements * copies);
  Device<char> workspace(LtMatmul::kWorkspace);
  LtMatmul lt;
  for (const int rows : {1, 2, 4, 8, 16, 32, 64}) {
    Random random;
    Input input(random.floats(static_cast<size_t>(rows) * cols, 2), std::vector<float>(cols, 1), rows);
    const SkinnyInput in = input.get(0, rows, cols, false, false);
    const SkinnyInput normed = input.get(0, rows, cols, true, rows <= kFusedRows);
    Device<float> y(static_cast<size_t>(rows) * w_rows);
    const auto product = [&](const SkinnyInput& from, int i) {
      SkinnyRows p;
      p.in = from;
      p.w = w.data + elements * (i % copies);
      p.y = y.data;
      p.rows = rows;
      p.cols = cols;
      p.w_rows = w_rows;
      launch_skinny_rows(p, stream);
    };
    const int count = std::max(copies, 16);
    const double plain = time_graph(count, [&](int i) { product(in, i); });
    const double with_norm = rows <= kFusedRows ? time_graph(count, [&](int i) { product(normed, i); }) : 0;
    const double library = time_graph(count, [&](int i) {
      lt.multiply({.x = in.rounded,
                   .w = w.data + elements * (i % copies),
                   .y = y.data,
                   .rows = rows,
                   .cols = cols,
                   .w_rows = w_rows,
                   .stride = w_rows},
                  workspace.data, stream);
    });
    const double bytes = elements * 2.0;
    std::printf("%6d x %5d, %2d rows: %7.2f us %5.0f GB/s (%3.0f %%)", w_rows, cols, rows, plain * 1e3,
                bytes / plain / 1e6, 100 * bytes / plain / 1e6 / rate);
    if (with_norm > 0)
      std::printf(", normed inside %7.2f us (%3.0f %%)", with_norm * 1e3, 100 * bytes / with_norm / 1e6 / rate);
    std::printf(", cuBLASLt %7.2f us %5.0f GB/s\n", library * 1e3, bytes / library / 1e6);
  }
}

/// The products of whole layers in their order, as in a decode step without attention.
/// With `check` whether a chain of them in one launch gives the same bits.
void chain(const char* name, int width, int q_width, int kv_width, int ffn, int rows, int64_t prefetch_bytes,
           double rate, bool one_launch, bool check = false) {
  if (one_launch && !skinny_chains(rows, width, q_width, ffn)) return;
  const int kLayers = check ? 2 : 8;
  const size_t qkv = static_cast<size_t>(q_width + 2 * kv_width) * width, wo = static_cast<size_t>(q_width) * width;
  const size_t gate = static_cast<size_t>(ffn) * width, layer = qkv + wo + 3 * gate;
  const Device<Half> w(layer * kLayers);
  fill<<<2048, 256, 0, stream>>>(w.data, layer * kLayers);
  Random random;
  const Device<float> x(random.floats(static_cast<size_t>(rows) * width, 2)), norm(std::vector<float>(width, 1));
  const Device<float> q(static_cast<size_t>(rows) * q_width), factors(rows);
  const Device<Half> rounded_x(static_cast<size_t>(rows) * std::max(width, q_width)),
      hidden(static_cast<size_t>(rows) * ffn);
  const Device<Half> kv(static_cast<size_t>(rows) * 64 * 2 * kv_width);
  const Device<float2> angles(std::vector<float2>(static_cast<size_t>(rows) * 64, make_float2(1, 0)));
  std::vector<int32_t> host_slots(rows);
  for (int r = 0; r < rows; ++r) host_slots[r] = 64 * r;
  const Device<int32_t> slots(host_slots);
  const auto input = [&](const float* from, bool with_norm, int cols) {
    SkinnyInput in;
    if (skinny_takes_floats(rows, cols)) {
      in.x = from;
      in.norm = with_norm ? norm.data : nullptr;
      in.epsilon = 1e-5f;
      return in;
    }
    launch_round({.x = from,
                  .norm = with_norm ? norm.data : nullptr,
                  .epsilon = 1e-5f,
                  .rows = rows,
                  .cols = cols,
                  .rounded = rounded_x.data,
                  .factors = factors.data},
                 stream);
    in.rounded = rounded_x.data;
    in.factors = with_norm ? factors.data : nullptr;
    return in;
  };
  const auto next = [&](const Half* first, size_t elements, const Half* second = nullptr) {
    Prefetch result;
    const int64_t bytes = std::min<int64_t>(static_cast<int64_t>(elements) * 2, prefetch_bytes / (second ? 2 : 1));
    result.data[0] = first;
    result.bytes[0] = bytes;
    if (second) result.data[1] = second;
    if (second) result.bytes[1] = bytes;
    return result;
  };
  const Device<unsigned long long> arrived(std::vector<unsigned long long>(1, 0));
  SkinnyChain pending;
  const auto layer_of = [&](int i, bool one_launch) {
    const Half* at = w.data + layer * (i % kLayers);
    const Half *k = at + static_cast<size_t>(q_width) * width, *o = at + qkv, *g = o + wo, *u = g + gate, *d = u + gate;
    SkinnyQkv a;
    a.in = input(x.data, true, width);
    a.w[0] = at;
    a.w[1] = k;
    a.w[2] = k + static_cast<size_t>(kv_width) * width;
    a.q = q.data;
    a.rows = rows;
    a.cols = width;
    a.q_width = q_width;
    a.kv_width = kv_width;
    a.fused = true;
    a.rope = {.angles = angles.data,
              .slots = slots.data,
              .kv = kv.data,
              .kv_heads = kv_width / 128,
              .head_dim = 128,
              .dims = 128};
    a.next = next(o, wo);
    if (!one_launch) {
      launch_skinny_qkv(a, stream);
    } else {
      if (i > 0) {
        pending.qkv = a;
        pending.with_qkv = true;
        launch_skinny_chain(pending, stream);
      } else {
        launch_skinny_qkv(a, stream);
      }
    }
    SkinnyRows b;
    b.in = input(q.data, false, q_width);
    b.w = o;
    b.y = x.data;
    b.rows = rows;
    b.cols = q_width;
    b.w_rows = width;
    b.add = check;
    b.next = next(g, gate, u);
    if (!one_launch) launch_skinny_rows(b, stream);
    SkinnyGateUp c;
    c.in = input(x.data, true, width);
    c.gate = g;
    c.up = u;
    c.hidden = hidden.data;
    c.rows = rows;
    c.cols = width;
    c.ffn = ffn;
    c.next = next(d, gate);
    if (!one_launch) launch_skinny_gate_up(c, stream);
    SkinnyRows e;
    e.in.rounded = hidden.data;
    e.w = d;
    e.y = x.data;
    e.rows = rows;
    e.cols = ffn;
    e.w_rows = width;
    e.add = check;
    e.next = next(w.data + layer * ((i + 1) % kLayers), qkv);
    if (!one_launch) launch_skinny_rows(e, stream);
    pending = {.project = b, .both = c, .down = e, .arrived = arrived.data};
  };
  if (check) {
    std::vector<float> first_x, first_q;
    std::vector<Half> first_kv;
    const std::vector<float> start = x.read();
    for (const bool chained : {false, true}) {
      must(cudaMemcpy(x.data, start.data(), start.size() * sizeof(float), cudaMemcpyHostToDevice));
      must(cudaMemset(kv.data, 0, kv.count * sizeof(Half)));
      must(cudaDeviceSynchronize());
      for (int i = 0; i < 3; ++i) layer_of(i, chained);
      if (chained) launch_skinny_chain(pending, stream);
      const auto got_x = x.read(), got_q = q.read();
      const auto got_kv = kv.read();
      if (chained) {
        report_bits("  chain in one launch: x", differing(got_x, first_x, 0, 0, got_x.size()));
        report_bits("  chain in one launch: q", differing(got_q, first_q, 0, 0, got_q.size()));
        report_bits("  chain in one launch: cache", differing(got_kv, first_kv, 0, 0, got_kv.size()));
      }
      first_x = got_x;
      first_q = got_q;
      first_kv = got_kv;
    }
    return;
  }
  const double ms = time_graph(2 * kLayers, [&](int i) {
    layer_of(i, one_launch);
    if (one_launch && i == 2 * kLayers - 1) launch_skinny_chain(pending, stream);
  });
  std::printf("%s, %2d rows, %s, %2lld MiB asked for early: %7.2f us a layer, %.0f GB/s (%.0f %% of the stream)\n",
              name, rows, one_launch ? "one launch" : "single", static_cast<long long>(prefetch_bytes >> 20), ms * 1e3,
              layer * 2.0 / ms / 1e6, 100 * layer * 2.0 / ms / 1e6 / rate);
}

void run(const std::vector<std::string>& parts) {
  const auto wanted = [&](const char* part) {
    return parts.empty() || std::find(parts.begin(), parts.end(), part) != parts.end();
  };
  // First of all: a kernel keeps what it got.
  if (std::find(parts.begin(), parts.end(), "no-carveout") != parts.end()) skinny_tuning().carveout = false;
  const bool carveout = skinny_tuning().carveout;
  cudaDeviceProp properties;
  must(cudaGetDeviceProperties(&properties, 0));
  must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  std::printf("%s, %d multiprocessors\n", properties.name, properties.multiProcessorCount);
  if (wanted("check")) {
    check_rows(333, 160);
    check_rows(96, 8);
    check_rows(1000, 4096);
    check_rows(512, 14336);
    check_gate_up(224, 192);
    check_gate_up(1504, 4096);
    check_qkv(4, 2, 64, 64, 256, false);
    check_qkv(7, 1, 64, 64, 192, true);
    check_qkv(3, 3, 96, 32, 160, false);
    check_qkv(2, 1, 80, 48, 160, true);
    check_qkv(32, 8, 128, 128, 4096, true);
    std::printf("a layer's products in one launch\n");
    for (const int depth : {5, 8, 10}) {
      skinny_tuning().depth = depth;
      for (const int rows : {1, 2, 3, 4}) {
        chain("", 512, 384, 128, 1000, rows, 0, 1, true, true);
        chain("", 4096, 4096, 1024, 14336, rows, 0, 1, true, true);
      }
    }
    skinny_tuning() = {};
    try {
      check_lt(4096, 4096, 64);
      check_lt(333, 160, 49);
    } catch (const std::exception& error) {
      std::printf("  cuBLASLt: %s\n", error.what());
    }
    std::printf("%d failures\n", failures);
  }
  if (!wanted("speed") && !wanted("chain") && !wanted("tune")) return;
  const double rate = stream_rate();
  std::printf("read stream %.0f GB/s\n", rate);
  if (wanted("chain")) {
    for (const int rows : {1, 2, 4, 8, 16, 32, 64}) {
      for (const int64_t mega : {0, 8, 16}) {
        if (rows > 1 && mega == 8) continue;
        chain("llama-2-7b", 4096, 4096, 4096, 11008, rows, mega << 20, rate, false);
        chain("llama-3-8b", 4096, 4096, 1024, 14336, rows, mega << 20, rate, false);
      }
      chain("llama-2-7b", 4096, 4096, 4096, 11008, rows, 0, rate, true);
      chain("llama-3-8b", 4096, 4096, 1024, 14336, rows, 0, rate, true);
    }
  }
  if (std::find(parts.begin(), parts.end(), "tune") != parts.end()) {
    const SkinnyTuning ways[] = {{5, 1, false, false}, {5, 1, true, false},  {5, 1, true, true},   {8, 1, true, false},
                                 {8, 1, true, true},   {10, 1, true, false}, {5, 2, false, false}, {5, 2, false, true}};
    for (const SkinnyTuning& way : ways) {
      skinny_tuning() = way;
      skinny_tuning().carveout = carveout;
      std::printf("ring of %d, %d blocks a multiprocessor%s, next kernel %s\n", way.depth, way.blocks,
                  way.alone && way.blocks == 1 ? " and no other" : "", way.late ? "late" : "at once");
      for (const int rows : {1, 4, 8}) {
        for (const int64_t mega : {0, 8}) {
          chain("llama-2-7b", 4096, 4096, 4096, 11008, rows, mega << 20, rate, false);
          if (rows == 1) chain("llama-3-8b", 4096, 4096, 1024, 14336, rows, mega << 20, rate, false);
        }
        if (!way.alone || way.late) continue;
        chain("llama-2-7b", 4096, 4096, 4096, 11008, rows, 0, rate, true);
        if (rows == 1) chain("llama-3-8b", 4096, 4096, 1024, 14336, rows, 0, rate, true);
      }
    }
    skinny_tuning() = {};
  }
  if (wanted("speed")) {
    speed(4096, 4096, rate);
    speed(12288, 4096, rate);
    speed(22016, 4096, rate);
    speed(4096, 11008, rate);
    speed(32000, 4096, rate);
  }
}

}  // namespace

int main(int count, char** arguments) {
  try {
    run({arguments + 1, arguments + count});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return failures > 0;
}
