// Recurrent layers over a text as long as contexts are: the state does not drift from the recurrence in double.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "parity/bounds.h"

namespace tidal::parity {
namespace {

constexpr int kRows = 131072;  // of the text
constexpr int kPass = 8;       // of a chunk: so products of float32 are not rounded to bf16
constexpr int kAtOnce = 8192;

double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }
double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

/// A layer whose products choose elements of the normed rows: queries, keys and values, gates, beta, alpha.
class LongDelta : public test::BackendTest<std::string> {
 protected:
  LongDelta() {
    hp_.layers = 1;
    hp_.width = net_.mixed_width() + net_.value_width() + 2 * net_.value_heads;
    hp_.heads = hp_.kv_heads = 1;
    hp_.head_dim = 16;
    hp_.vocab = 2;
    hp_.delta = net_;
    hp_.recurrent = {true};
    taps_.view.rows = net_.mixed_width();
    taps_.view.cols = net_.taps;
    // One head remembers some 20 rows, the other some 2,000.
    decay_.values = {-0.05f, -0.0005f};
    std::memcpy(decay_.bytes.data(), decay_.values.data(), decay_.bytes.size());
  }

  HostWeight choice(int rows, int first) {
    HostWeight weight = random_weight(GGML_TYPE_F32, rows, hp_.width, random_);
    std::fill(weight.values.begin(), weight.values.end(), 0.0f);
    for (int r = 0; r < rows; ++r) weight.values[static_cast<size_t>(r) * hp_.width + first + r] = 1.0f;
    std::memcpy(weight.bytes.data(), weight.values.data(), weight.bytes.size());
    return weight;
  }

  /// Takes rows x [kAtOnce, width] from `position` on into the state.
  void run(Device& device, const Layer& layer, Rows rows, float* state, int position) const {
    const std::vector<Token> tokens(kPass, 0);
    for (int r = 0; r < rows.rows; r += kPass) {
      std::vector<int32_t> positions(kPass);
      std::iota(positions.begin(), positions.end(), position + r);
      Chunk chunk;
      chunk.rows = kPass;
      chunk.position = position + r;
      chunk.state = state;
      const Batch batch{tokens, positions, {&chunk, 1}, {}};
      device->begin(hp_, batch);
      device->delta(layer, batch, 0, {rows.row(r), kPass, rows.width});
    }
  }

  /// One normed row in double: what the convolution makes of it, then every head.
  void take(std::span<const float> n) {
    const int width = net_.mixed_width(), dim = net_.head_dim;
    last_.erase(last_.begin());
    last_.emplace_back(n.begin(), n.begin() + width);
    std::vector<double> mixed(width);
    for (int c = 0; c < width; ++c) {
      double sum = 0;
      for (int t = 0; t < net_.taps; ++t) {
        sum += static_cast<double>(taps_.values[static_cast<size_t>(c) * net_.taps + t]) * last_[t][c];
      }
      mixed[c] = sum * sigmoid(sum);
    }
    for (int h = 0; h < net_.value_heads; ++h) {
      const float* factors = n.data() + width + net_.value_width() + h;
      const double alpha = static_cast<double>(factors[net_.value_heads]) + bias_.values[h];
      const double written = sigmoid(factors[0]), kept = std::exp(decay_.values[h] * softplus(alpha));
      const double* k = mixed.data() + net_.key_width() + int64_t{net_.key_head(h)} * dim;
      const double* v = mixed.data() + 2 * net_.key_width() + int64_t{h} * dim;
      const double norm = std::sqrt(std::inner_product(k, k + dim, k, 0.0) + static_cast<double>(hp_.rms_epsilon));
      double* s = heads_[h].data();
      std::vector<double> known(dim, 0.0);
      for (int i = 0; i < dim; ++i) {
        for (int j = 0; j < dim; ++j) known[j] += kept * s[i * dim + j] * k[i] / norm;
      }
      for (int i = 0; i < dim; ++i) {
        for (int j = 0; j < dim; ++j) {
          s[i * dim + j] = kept * s[i * dim + j] + k[i] / norm * written * (v[j] - known[j]);
        }
      }
    }
  }

  DeltaNet net_{.taps = 4, .head_dim = 16, .key_heads = 1, .value_heads = 2};
  Hyperparameters hp_;
  Random random_{7};
  HostWeight taps_ = random_vector(net_.mixed_width() * net_.taps, 0, 0.5f, random_);
  HostWeight bias_ = random_vector(net_.value_heads, 0, 1, random_);
  HostWeight decay_ = random_vector(net_.value_heads, 0, 0, random_);
  std::vector<std::vector<float>> last_{static_cast<size_t>(net_.taps), std::vector<float>(net_.mixed_width(), 0.0f)};
  std::vector<std::vector<double>> heads_{static_cast<size_t>(net_.value_heads), std::vector<double>(256, 0.0)};
};

// Each row rounds an element of the state a few times, by 2^-24 of about its size and without a direction, and what is
// kept fades: of 2,000 rows that is below sqrt(2,000) * 2^-22, 1e-5 of its size.
TEST_P(LongDelta, StateDoesNotDrift) {
  const int dim = net_.head_dim, width = net_.mixed_width();
  const HostWeight norm = random_vector(hp_.width, 1, 0, random_), head_norm = random_vector(dim, 1, 0.2f, random_);
  const HostWeight mixed = choice(width, 0), gate = choice(net_.value_width(), width);
  const HostWeight beta = choice(net_.value_heads, width + net_.value_width());
  const HostWeight alpha = choice(net_.value_heads, width + net_.value_width() + net_.value_heads);
  const HostWeight out = random_weight(GGML_TYPE_F32, hp_.width, net_.value_width(), random_);
  std::vector<float> state(static_cast<size_t>(net_.state_elements()), 0.0f);
  for (int position = 0; position < kRows; position += kAtOnce) {
    std::vector<float> x;
    for (int i = 0; i < kAtOnce * hp_.width; ++i) x.push_back(random_.normal(1));
    Device device(GetParam());
    device->reserve(hp_, kPass, kRows);
    Layer layer;
    layer.attn_norm = device.weight(norm);
    layer.delta = {.mixed = device.weight(mixed),
                   .gate = device.weight(gate),
                   .beta = device.weight(beta),
                   .alpha = device.weight(alpha),
                   .taps = device->upload_exact(taps_.view),
                   .alpha_bias = device.weight(bias_),
                   .decay = device.weight(decay_),
                   .norm = device.weight(head_norm),
                   .out = device.weight(out)};
    const Rows memory = device.rows(state, static_cast<int>(state.size()));
    run(device, layer, device.rows(x, hp_.width), memory.data, position);
    state = device.read(memory);
    for (int r = 0; r < kAtOnce; ++r) {
      take(normed(std::span(x).subspan(static_cast<size_t>(r) * hp_.width, static_cast<size_t>(hp_.width)), norm));
    }
  }
  for (int h = 0; h < net_.value_heads; ++h) {
    double difference = 0, size = 0;
    for (int i = 0; i < dim * dim; ++i) {
      const double expected = heads_[h][i];
      const double got = state[static_cast<size_t>(net_.tail_elements() + int64_t{h} * dim * dim + i)];
      difference += (got - expected) * (got - expected);
      size += expected * expected;
    }
    std::printf("  head %d: %.2e of its size\n", h, std::sqrt(difference / size));
    EXPECT_LE(std::sqrt(difference / size), 1e-5) << h;
  }
}

/// Without cuda, whose products round the rows that they are to choose of.
INSTANTIATE_TEST_SUITE_P(All, LongDelta, testing::Values("reference", "cpu"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace tidal::parity
