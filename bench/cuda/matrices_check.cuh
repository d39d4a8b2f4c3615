// Skinny products against a double loop on the host and against cuBLASLt; the same bits whatever the company.
#pragma once

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "backend/cuda/products/matmul_lt.h"
#include "matrices_fixture.cuh"

namespace {

int failures = 0;

double rounded(double value) { return __bfloat162float(__float2bfloat16(static_cast<float>(value))); }

void report(const char* what, double worst, double allowed) {
  const bool good = worst <= allowed;
  failures += !good;
  if (good) return;
  std::printf("  %-58s %.2e of %.2e WRONG\n", what, worst, allowed);
}
void report_bits(const char* what, size_t different) {
  failures += different > 0;
  if (different == 0) return;
  std::printf("  %-58s %zu different WRONG\n", what, different);
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
    for (const bool rounded_before : {false, true}) {
      Input input(x, norm, most);
      Device<float> y(before);
      SkinnyRows p;
      p.in = rounded_before ? input.rounded(rows, cols, true) : input.get(rows, cols, true);
      p.w = dw.data;
      p.bias = dbias.data;
      p.y = y.data;
      p.rows = rows;
      p.cols = cols;
      p.w_rows = w_rows;
      p.add = true;
      launch_skinny_rows(p, stream);
      const auto got = y.read();
      if (rows == 1 && !rounded_before) {
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
      const std::string name = "rows " + std::to_string(rows) + (rounded_before ? ", rounded before" : "");
      report_bits((name + ", each row as alone").c_str(),
                  differing(got, alone, 0, 0, static_cast<size_t>(rows) * w_rows));
      report_bits("  rows behind stay",
                  differing(got, before, static_cast<size_t>(rows) * w_rows, static_cast<size_t>(rows) * w_rows,
                            static_cast<size_t>(most - rows) * w_rows));
      if (rounded_before) continue;
      double worst = 0;
      for (int r = 0; r < rows; ++r) {
        for (int o = 0; o < w_rows; o += std::max(1, w_rows / 29)) {
          const size_t at = static_cast<size_t>(r) * w_rows + o;
          worst = std::max(worst, std::abs(dot(w, o, host, r, cols) + bias[o] + before[at] - got[at]));
        }
      }
      // Sums of `cols` products of about 0.1 in float32.
      report("  against a loop", worst, 1e-6 * std::sqrt(cols) * 4);
    }
  }
}

/// A product that leaves its results normed for the next one: the same bits as that makes of the results itself.
void check_next(int width, int cols) {
  std::printf("product %d x %d and what is behind\n", width, cols);
  Random random;
  const int most = 40;
  const auto x = random.floats(static_cast<size_t>(most) * cols, 2), norm = random.floats(width, 0.3f, 1);
  const Device<Half> w(random.halves(static_cast<size_t>(width) * cols, 0.1f));
  const Device<Half> behind(random.halves(static_cast<size_t>(100) * width, 0.1f));
  for (const int rows : {1, 3, 6, 8, 13, 16, 29, 40}) {
    Input input(x, std::vector<float>(cols, 1), most);
    Input results(std::vector<float>(static_cast<size_t>(most) * width), norm, most);
    const Device<Half> normed(static_cast<size_t>(most) * width);
    const Device<float> squares(static_cast<size_t>(most) * ((width + 15) / 16));
    const Device<float> got(static_cast<size_t>(rows) * 100), one(100);
    SkinnyRows p;
    p.in = input.get(rows, cols, false);
    p.w = w.data;
    p.y = results.x.data;
    p.rows = rows;
    p.cols = cols;
    p.w_rows = width;
    p.next = {results.norm.data, normed.data, squares.data};
    launch_skinny_rows(p, stream);
    SkinnyRows q;
    q.in.rounded = normed.data;
    q.in.squares = squares.data;
    q.in.epsilon = 1e-5f;
    q.w = behind.data;
    q.y = got.data;
    q.rows = rows;
    q.cols = width;
    q.w_rows = 100;
    launch_skinny_rows(q, stream);
    const auto all = got.read();
    for (int r = 0; r < rows; ++r) {
      SkinnyRows alone = q;
      alone.in = results.get(1, width, true);
      alone.in.x += static_cast<size_t>(r) * width;
      alone.y = one.data;
      alone.rows = 1;
      launch_skinny_rows(alone, stream);
      report_bits(("rows " + std::to_string(rows) + ", row " + std::to_string(r)).c_str(),
                  differing(all, one.read(), static_cast<size_t>(r) * 100, 0, 100));
    }
    SkinnyRows rounded = q;
    rounded.in = results.rounded(rows, width, true);
    launch_skinny_rows(rounded, stream);
    report_bits("  rounded by a launch of its own", differing(all, got.read(), 0, 0, all.size()));
  }
}

void check_lt(int w_rows, int cols, int rows) {
  Random random;
  const auto w = random.halves(static_cast<size_t>(w_rows) * cols, 0.1f);
  const auto x = random.floats(static_cast<size_t>(rows) * cols, 2);
  const Device<Half> dw(w);
  Input input(x, std::vector<float>(cols, 1), rows);
  const SkinnyInput in = input.rounded(rows, cols, false);
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
        p.in = input.get(1, cols, true);
        p.in.x += static_cast<size_t>(r) * cols;
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
    p.in = input.get(rows, cols, true);
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
      for (int o = 0; o < ffn; o += std::max(1, ffn / 29)) {
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
  p.in = input.get(rows, cols, true);
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
    one.in = input.get(1, cols, true);
    one.in.x += static_cast<size_t>(r) * cols;
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
                        .kv = reinterpret_cast<std::byte*>(kv2.data),
                        .row_bytes = int64_t{4} * dim,
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

void check_all() {
  check_rows(333, 160);
  check_rows(96, 8);
  check_rows(1000, 4096);
  check_rows(512, 14336);
  check_next(360, 192);
  check_next(4096, 512);
  check_next(10000, 64);
  check_gate_up(224, 192);
  check_gate_up(1504, 4096);
  check_qkv(4, 2, 64, 64, 256, false);
  check_qkv(7, 1, 64, 64, 192, true);
  check_qkv(3, 3, 96, 32, 160, false);
  check_qkv(2, 1, 80, 48, 160, true);
  check_qkv(32, 8, 128, 128, 4096, true);
  try {
    check_lt(4096, 4096, 64);
    check_lt(333, 160, 49);
  } catch (const std::exception& error) {
    std::printf("  cuBLASLt: %s\n", error.what());
  }
  std::printf("%d failures\n", failures);
}

}  // namespace
