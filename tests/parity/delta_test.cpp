// Recurrent layers and gated attention: the reference against the formulas of Backend::delta() in double, the other
// backends against the same, within what the rounding of their products makes of it.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "parity/bounds.h"

namespace tidal::parity {
namespace {

constexpr double kFloat = 0x1p-24;

struct Net {
  const char* name;
  int width;
  DeltaNet delta;
};

const Net kUsual{"usual", 128, {.taps = 4, .head_dim = 32, .key_heads = 2, .value_heads = 4}};
const Net kNeighbours{
    "neighbours", 96, {.taps = 4, .head_dim = 32, .key_heads = 2, .value_heads = 6, .neighbours = true}};
const Net kOdd{"odd", 64, {.taps = 3, .head_dim = 13, .key_heads = 3, .value_heads = 3}};
const Net kLarge{"large", 256, {.taps = 4, .head_dim = 128, .key_heads = 1, .value_heads = 2}};

// On the device these take kernels of their own.
const Net kWide{"wide", 64, {.taps = 4, .head_dim = 136, .key_heads = 1, .value_heads = 2}};
const Net kFiveTaps{"five_taps", 96, {.taps = 5, .head_dim = 40, .key_heads = 2, .value_heads = 2}};

/// Short chunks, long ones (of whole blocks of 64 rows, and not), and such that begin a text.
std::vector<ChunkShape> ragged() {
  return {{0, 1}, {64, 1}, {4096, 1}, {62, 2}, {5, 8}, {0, 9}, {300, 30}, {0, 64}, {70, 150}};
}

double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }
double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double length(std::span<const double> x) {
  double squares = 0;
  for (const double value : x) squares += value * value;
  return std::sqrt(squares);
}

/// Numbers and bounds of a backend's errors.
struct Uncertain {
  std::vector<double> values, errors;

  std::span<const double> head(int first, int count) const { return std::span(values).subspan(first, count); }
  std::span<const double> head_errors(int first, int count) const { return std::span(errors).subspan(first, count); }
};

class DeltaParity : public test::BackendTest<std::tuple<std::string, Net, ggml_type>> {
 protected:
  void SetUp() override {
    BackendTest::SetUp();
    if (IsSkipped()) return;
    if (backend() == "cuda" && shape().delta.head_dim % 8 != 0) GTEST_SKIP() << "refused there";
    const DeltaNet& net = shape().delta;
    hp_.layers = 1;
    hp_.width = shape().width;
    hp_.heads = hp_.kv_heads = 1;
    hp_.head_dim = 16;
    hp_.vocab = 333;
    hp_.delta = net;
    hp_.recurrent = {true};
    const auto matrix = [&](int rows) { return random_weight(type(), rows, hp_.width, random_); };
    norm_ = random_vector(hp_.width, 1, 0.2f, random_);
    mixed_ = matrix(net.mixed_width());
    gate_ = matrix(net.value_width());
    beta_ = matrix(net.value_heads);
    alpha_ = matrix(net.value_heads);
    taps_ = random_vector(net.mixed_width() * net.taps, 0, 0.5f, random_);
    taps_.view.rows = net.mixed_width();
    taps_.view.cols = net.taps;
    bias_ = random_vector(net.value_heads, 0, 1, random_);
    decay_ = random_vector(net.value_heads, -0.3f, 0.05f, random_);  // so that a handful of rows is remembered
    head_norm_ = random_vector(net.head_dim, 1, 0.2f, random_);
    // Rows of heads that no block of a quantisation divides are float32.
    const bool whole = net.value_width() % ggml_blck_size(type()) == 0;
    out_ = random_weight(whole ? type() : GGML_TYPE_F32, hp_.width, net.value_width(), random_);
    for (int i = 0; i < batch_->rows() * hp_.width; ++i) x_.push_back(random_.normal(2));
    for (size_t i = 0; i < batch_->chunks.size() * net.state_elements(); ++i) states_.push_back(random_.normal(0.3f));
  }

  const std::string& backend() const { return std::get<0>(GetParam()); }
  const Net& shape() const { return std::get<1>(GetParam()); }
  ggml_type type() const { return std::get<2>(GetParam()); }

  Layer layer(Device& device) const {
    Layer layer;
    layer.attn_norm = device.weight(norm_);
    layer.delta = {.mixed = device.weight(mixed_),
                   .gate = device.weight(gate_),
                   .beta = device.weight(beta_),
                   .alpha = device.weight(alpha_),
                   .taps = device->upload_exact(taps_.view),
                   .alpha_bias = device.weight(bias_),
                   .decay = device.weight(decay_),
                   .norm = device.weight(head_norm_),
                   .out = device.weight(out_)};
    return layer;
  }

  struct Result {
    std::vector<float> x, states;
  };
  /// The chunks of `batch` from `states`, one for each.
  Result run(const std::string& name, const HostBatch& batch, const std::vector<float>& x,
             const std::vector<float>& states, int threads = 2) const {
    Device device(name, threads);
    const auto elements = static_cast<int>(hp_.delta.state_elements());
    const Rows memory = device.rows(states, elements);
    std::vector<Chunk> chunks(batch->chunks.begin(), batch->chunks.end());
    for (size_t c = 0; c < chunks.size(); ++c) chunks[c].state = memory.row(static_cast<int>(c));
    Batch own = *batch;
    own.chunks = chunks;
    device->reserve(hp_, own.rows(), batch.max_context());
    device->begin(hp_, own);
    const Rows rows = device.rows(x, hp_.width);
    device->delta(layer(device), own, 0, rows);
    return {device.read(rows), device.read(memory)};
  }

  std::vector<float> rows_of(const std::vector<float>& x, int first, int count) const {
    const auto begin = x.begin() + static_cast<ptrdiff_t>(first) * hp_.width;
    return {begin, begin + static_cast<ptrdiff_t>(count) * hp_.width};
  }
  std::vector<float> state_of(const std::vector<float>& states, size_t chunk) const {
    const auto begin = states.begin() + static_cast<ptrdiff_t>(chunk) * hp_.delta.state_elements();
    return {begin, begin + hp_.delta.state_elements()};
  }

  /// A product of a normed row, with the bounds that a chunk's rows have.
  Uncertain projected(const HostWeight& weight, std::span<const float> n, Rounding rounding) const {
    const std::vector<float> values = product(weight, {}, n);
    return {{values.begin(), values.end()}, product_bounds(weight, n, rounding)};
  }

  /// silu(convolution) of the last rows.
  Uncertain convolved(std::span<const Uncertain> last) const {
    const int width = hp_.delta.mixed_width(), taps = hp_.delta.taps;
    Uncertain result{std::vector<double>(width), std::vector<double>(width)};
    for (int c = 0; c < width; ++c) {
      double sum = 0, error = 0;
      for (int t = 0; t < taps; ++t) {
        const double tap = taps_.values[static_cast<size_t>(c) * taps + t];
        sum += tap * last[t].values[c];
        error += std::abs(tap) * (last[t].errors[c] + 2 * taps * kFloat * std::abs(last[t].values[c]));
      }
      result.values[c] = sum * sigmoid(sum);
      // silu's slope is below 1.1; exp's argument and result, the division and the product round.
      result.errors[c] = 1.1 * error + kFloat * (16 + std::abs(sum)) * std::abs(result.values[c]);
    }
    return result;
  }

  /// A head brought to length 1, and the bound of its error's length.
  std::pair<std::vector<double>, double> unit(std::span<const double> head, std::span<const double> errors) const {
    const double norm = std::sqrt(length(head) * length(head) + 1e-5);
    std::vector<double> values;
    for (const double value : head) values.push_back(value / norm);
    // The direction moves by at most twice the relative error; squares, root and quotient round.
    return {values, 2 * length(errors) / norm + (static_cast<double>(head.size()) + 16) * kFloat};
  }

  Random random_{static_cast<uint64_t>(type()) + 4000};
  Hyperparameters hp_;
  HostBatch batch_{ragged(), 333, random_};
  HostWeight norm_, mixed_, gate_, beta_, alpha_, taps_, bias_, decay_, head_norm_, out_;
  std::vector<float> x_;       // [rows, width]
  std::vector<float> states_;  // [chunks, state_elements]
};

/// S of one value head in double, and the bound of the length of a backend's error of it.
struct HeadState {
  std::vector<double> s;  // [key element, value element]
  double error = 0;
};

TEST_P(DeltaParity, IsWhatTheFormulasSay) {
  const DeltaNet& net = hp_.delta;
  const int dim = net.head_dim;
  std::vector<float> expected, expected_states;
  std::vector<double> bounds, state_bounds;
  for (size_t c = 0; c < batch_->chunks.size(); ++c) {
    const Chunk& chunk = batch_->chunks[c];
    const Rounding rounding = rounding_of(backend(), chunk.rows, type());
    std::vector<float> state = state_of(states_, c);
    if (chunk.position == 0) std::fill(state.begin(), state.end(), 0.0f);
    std::vector<Uncertain> last;  // rows before the convolution
    for (int t = 0; t + 1 < net.taps; ++t) {
      const auto begin = state.begin() + static_cast<ptrdiff_t>(t) * net.mixed_width();
      last.push_back({{begin, begin + net.mixed_width()}, std::vector<double>(net.mixed_width(), 0.0)});
    }
    std::vector<HeadState> heads(net.value_heads);
    for (int h = 0; h < net.value_heads; ++h) {
      const auto begin = state.begin() + net.tail_elements() + static_cast<ptrdiff_t>(h) * dim * dim;
      heads[h].s.assign(begin, begin + static_cast<ptrdiff_t>(dim) * dim);
    }
    for (int r = chunk.first_row; r < chunk.first_row + chunk.rows; ++r) {
      const std::vector<float> x = rows_of(x_, r, 1), n = normed(x, norm_);
      // Whatever the chunk, since they are narrow; but on the device.
      const Rounding dots = rounding_of(backend(), backend() == "cuda" ? chunk.rows : 1, type());
      const Uncertain alpha = projected(alpha_, n, dots), beta = projected(beta_, n, dots);
      const Uncertain gates = projected(gate_, n, rounding);
      last.push_back(projected(mixed_, n, rounding));
      const Uncertain mixed = convolved(last);
      last.erase(last.begin());
      std::vector<float> hidden;
      std::vector<double> hidden_bounds;
      for (int h = 0; h < net.value_heads; ++h) {
        const int key = net.key_head(h) * dim, value = 2 * net.key_width() + h * dim;
        const auto [q, q_error] = unit(mixed.head(key, dim), mixed.head_errors(key, dim));
        const auto [k, k_error] =
            unit(mixed.head(net.key_width() + key, dim), mixed.head_errors(net.key_width() + key, dim));
        const auto v = mixed.head(value, dim);
        const double a = alpha.values[h] + bias_.values[h];
        const double kept = std::exp(decay_.values[h] * softplus(a)), written = sigmoid(beta.values[h]);
        // The slopes of softplus and sigmoid are at most 1 and 1/4.
        const double kept_error = kept * (std::abs(decay_.values[h]) * alpha.errors[h] + 8 * kFloat);
        const double written_error = beta.errors[h] / 4 + 8 * kFloat;
        HeadState& head = heads[h];
        const double size = length(head.s), sums = 2 * dim * kFloat;
        std::vector<double> correction(dim), read(dim, 0.0);
        for (int j = 0; j < dim; ++j) {
          double known = 0;
          for (int i = 0; i < dim; ++i) known += kept * head.s[i * dim + j] * k[i];
          correction[j] = written * (v[j] - known);
        }
        for (int i = 0; i < dim; ++i) {
          for (int j = 0; j < dim; ++j) {
            double& s = head.s[i * dim + j];
            s = kept * s + k[i] * correction[j];
            read[j] += s * q[i];
          }
        }
        // S (I - b k k^T) is no longer than S, nor is its error; what comes new to that, term by term.
        const double new_known = kept_error * size + size * k_error + sums * size;
        const double new_correction = written * (length(mixed.head_errors(value, dim)) + new_known) +
                                      written_error * (length(v) + size) + 4 * kFloat * (length(v) + size);
        head.error = kept * head.error + kept_error * size + new_correction + k_error * length(correction) +
                     4 * kFloat * (size + length(correction));
        const double now = length(head.s), scale = 1 / std::sqrt(static_cast<double>(dim));
        const double read_error = (head.error + now * q_error + sums * now) * scale;
        std::vector<float> o;
        for (const double value_read : read) o.push_back(static_cast<float>(value_read * scale));
        const std::vector<float> o_normed = normed(o, head_norm_);
        const std::vector<double> o_bounds =
            norm_bounds(o, std::vector<double>(dim, read_error + kFloat), head_norm_.values);
        for (int j = 0; j < dim; ++j) {
          const double gate = gates.values[h * dim + j], silu = gate * sigmoid(gate);
          const double silu_error = 1.1 * gates.errors[h * dim + j] + kFloat * (16 + std::abs(gate)) * std::abs(silu);
          hidden.push_back(static_cast<float>(o_normed[j] * silu));
          hidden_bounds.push_back((std::abs(o_normed[j]) + o_bounds[j]) * silu_error + o_bounds[j] * std::abs(silu) +
                                  4 * kFloat * std::abs(hidden.back()));
        }
      }
      const std::vector<float> added = product(out_, {}, hidden);
      const auto own = product_bounds(out_, hidden, rounding_of(backend(), chunk.rows, out_.view.type), hidden_bounds);
      for (size_t i = 0; i < added.size(); ++i) {
        expected.push_back(x[i] + added[i]);
        bounds.push_back(own[i] + 4 * kFloat * (std::abs(x[i]) + std::abs(added[i])));
      }
    }
    for (const Uncertain& row : last) {
      for (size_t i = 0; i < row.values.size(); ++i) {
        expected_states.push_back(static_cast<float>(row.values[i]));
        state_bounds.push_back(row.errors[i] + kFloat * std::abs(row.values[i]));
      }
    }
    for (const HeadState& head : heads) {
      for (const double s : head.s) {
        expected_states.push_back(static_cast<float>(s));
        state_bounds.push_back(head.error + kFloat * std::abs(s));
      }
    }
  }
  const Result got = run(backend(), batch_, x_, states_);
  expect_close("x", got.x, expected, bounds);
  expect_close("states", got.states, expected_states, state_bounds);
}

TEST_P(DeltaParity, WhatARowGetsDependsOnItsChunkAlone) {
  const Result together = run(backend(), batch_, x_, states_), one_thread = run(backend(), batch_, x_, states_, 1);
  EXPECT_EQ(together.x, one_thread.x);
  EXPECT_EQ(together.states, one_thread.states);
  for (size_t c = 0; c < batch_->chunks.size(); ++c) {
    const Chunk& chunk = batch_->chunks[c];
    Random random(5);
    const HostBatch alone({{chunk.position, chunk.rows}}, 333, random);
    const Result own = run(backend(), alone, rows_of(x_, chunk.first_row, chunk.rows), state_of(states_, c), 3);
    EXPECT_EQ(own.x, rows_of(together.x, chunk.first_row, chunk.rows)) << "chunk of " << chunk.rows << " rows";
    EXPECT_EQ(own.states, state_of(together.states, c)) << "chunk of " << chunk.rows << " rows";
  }
}

TEST_P(DeltaParity, RowsOfShortChunksGetWhatTheyGetOneByOne) {
  const int most = std::min((*Device(backend())).decode_rows(), 8);
  for (int rows = 2; rows <= most; ++rows) {
    Random random(5);
    const HostBatch whole({{100, rows}}, 333, random);
    const Result expected = run(backend(), whole, rows_of(x_, 0, rows), state_of(states_, 0));
    std::vector<float> x, state = state_of(states_, 0);
    for (int r = 0; r < rows; ++r) {
      const HostBatch one({{100 + r, 1}}, 333, random);
      const Result step = run(backend(), one, rows_of(x_, r, 1), state);
      x.insert(x.end(), step.x.begin(), step.x.end());
      state = step.states;
    }
    EXPECT_EQ(x, expected.x) << rows;
    EXPECT_EQ(state, expected.states) << rows;
  }
}

TEST_P(DeltaParity, WhatStoodThereBeforeATextIsOfNoAccount) {
  Random random(5);
  const HostBatch first({{0, 3}}, 333, random);
  const std::vector<float> x = rows_of(x_, 0, 3);
  std::vector<float> state = state_of(states_, 0);
  const Result expected = run(backend(), first, x, std::vector<float>(state.size(), 0.0f));
  std::fill(state.begin(), state.end(), std::numeric_limits<float>::quiet_NaN());
  const Result got = run(backend(), first, x, state);
  EXPECT_EQ(got.x, expected.x);
  EXPECT_EQ(got.states, expected.states);
}

TEST_P(DeltaParity, GatesMultiplyWhatAttentionGives) {
  hp_.gated_attention = true;
  hp_.head_dim = 32;
  hp_.heads = 3;
  const HostWeight gates = random_weight(type(), hp_.q_width(), hp_.width, random_);
  std::vector<float> out;
  for (int i = 0; i < batch_->rows() * hp_.q_width(); ++i) out.push_back(random_.normal(1));
  std::vector<float> expected;
  std::vector<double> bounds;
  for (const Chunk& chunk : batch_->chunks) {
    for (int r = chunk.first_row; r < chunk.first_row + chunk.rows; ++r) {
      const Uncertain gate =
          projected(gates, normed(rows_of(x_, r, 1), norm_), rounding_of(backend(), chunk.rows, type()));
      for (int i = 0; i < hp_.q_width(); ++i) {
        const double value = out[expected.size()];
        expected.push_back(static_cast<float>(value * sigmoid(gate.values[i])));
        // The sigmoid's slope is 1/4 at most.
        bounds.push_back(std::abs(value) * (gate.errors[i] / 4 + (16 + std::abs(gate.values[i])) * kFloat));
      }
    }
  }
  Device device(backend());
  device.begin(hp_, batch_);
  Layer layer;
  layer.attn_norm = device.weight(norm_);
  layer.attn_gate = device.weight(gates);
  const Rows rows = device.rows(out, hp_.q_width());
  device->gate(layer, device.rows(x_, hp_.width), rows);
  expect_close("gated", device.read(rows), expected, bounds);
}

std::string name_of(const testing::TestParamInfo<DeltaParity::ParamType>& info) {
  return std::get<0>(info.param) + "_" + std::get<1>(info.param).name + "_" + ggml_type_name(std::get<2>(info.param));
}

INSTANTIATE_TEST_SUITE_P(Shapes, DeltaParity,
                         testing::Combine(testing::Values("reference", "cpu", "cuda"),
                                          testing::Values(kUsual, kNeighbours, kOdd, kLarge, kWide, kFiveTaps),
                                          testing::Values(GGML_TYPE_F32, GGML_TYPE_Q8_0)),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Types, DeltaParity,
                         testing::Combine(testing::Values("cpu", "cuda"), testing::Values(kLarge),
                                          testing::Values(GGML_TYPE_BF16, GGML_TYPE_Q4_0, GGML_TYPE_Q4_K,
                                                          GGML_TYPE_Q6_K)),
                         name_of);

}  // namespace
}  // namespace tidal::parity
