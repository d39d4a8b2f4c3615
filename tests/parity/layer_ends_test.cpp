// What layers get beside x, of every backend against the reference: inputs of their own, and a factor on what they
// leave.
#include <gtest/gtest.h>

#include <cmath>

#include "parity/bounds.h"

namespace tidal::parity {
namespace {

constexpr int kLayers = 9, kWidth = 288, kInput = 64, kVocab = 90;  // 9 layers: more than a block of a kernel has

class LayerEnds : public test::BackendTest<std::tuple<std::string, ggml_type>> {
 protected:
  void SetUp() override {
    BackendTest::SetUp();
    if (IsSkipped()) return;
    hp_ = attention_shape(1, 1, 16);
    hp_.layers = kLayers;
    hp_.width = kWidth;
    hp_.vocab = kVocab;
    hp_.layer_input = kInput;
    hp_.post_norms = true;  // as all models with inputs have them
    hp_.activation = Activation::Gelu;
    x_ = random_.uniform(static_cast<size_t>(batch_->rows()) * kWidth, 2.0f);
  }

  const std::string& backend() const { return std::get<0>(GetParam()); }
  ggml_type type() const { return std::get<1>(GetParam()); }
  std::span<const float> row(const std::vector<float>& all, int index, int width) const {
    return {all.data() + static_cast<size_t>(index) * width, static_cast<size_t>(width)};
  }
  template <typename Function>
  void for_rows(Function&& function) const {
    for (const Chunk& chunk : batch_->chunks) {
      for (int r = chunk.first_row; r < chunk.first_row + chunk.rows; ++r) {
        function(r, rounding_of(backend(), chunk.rows, type()));
      }
    }
  }

  Random random_{static_cast<uint64_t>(type()) + 5000};
  Hyperparameters hp_;
  HostBatch batch_{{{0, 1}, {63, 1}, {62, 2}, {5, 8}, {120, 9}, {300, 40}}, kVocab, random_};
  std::vector<float> x_;  // [rows, width]
};

TEST_P(LayerEnds, Inputs) {
  const HostWeight embedding = random_weight(type(), kVocab, kLayers * kInput, random_);
  const HostWeight projection = random_weight(type(), kLayers * kInput, kWidth, random_);
  const HostWeight norm = random_vector(kInput, 1, 0.2f, random_);
  const auto inputs = [&](const std::string& name) {
    Device device(name);
    device.begin(hp_, batch_);
    const Rows result = device.rows(batch_->rows(), kLayers * kInput);
    device->layer_inputs({device.weight(embedding), device.weight(projection), device.weight(norm)}, *batch_,
                         device.rows(x_, kWidth), result);
    return device.read(result);
  };
  // On a device the embedding may be rounded to bf16.
  const double of_embedding = Device(backend())->matrix_type(type()) == type() ? 0 : 0x1p-9;
  std::vector<double> bounds;
  for_rows([&](int r, Rounding rounding) {
    const std::vector<float> products = product(projection, {}, row(x_, r, kWidth));
    const std::vector<double> own = product_bounds(projection, row(x_, r, kWidth), rounding);
    for (size_t at = 0; at < products.size(); at += kInput) {
      std::vector<float> part(products.begin() + at, products.begin() + at + kInput);
      std::vector<double> part_bounds(own.begin() + at, own.begin() + at + kInput);
      for (size_t i = 0; i < part.size(); ++i) {
        part[i] /= std::sqrt(static_cast<float>(kWidth));
        part_bounds[i] = part_bounds[i] / std::sqrt(static_cast<double>(kWidth)) + 0x1p-23 * std::abs(part[i]);
      }
      part_bounds = norm_bounds(part, part_bounds, norm.values);
      part = normed(part, norm);
      for (size_t i = 0; i < part.size(); ++i) {
        const double second = std::sqrt(static_cast<double>(kInput)) *
                              embedding.values[static_cast<size_t>(batch_->tokens[r]) * products.size() + at + i];
        bounds.push_back(part_bounds[i] + of_embedding * std::abs(second) +
                         8 * 0x1p-24 * (std::abs(part[i]) + std::abs(second)));
      }
    }
  });
  expect_close("inputs", inputs(backend()), inputs("reference"), bounds);
}

TEST_P(LayerEnds, AnInputIsAddedAndTheLayerScaled) {
  const HostWeight gate = random_weight(type(), kInput, kWidth, random_);
  const HostWeight projection = random_weight(type(), kWidth, kInput, random_);
  const HostWeight norm = random_vector(kWidth, 1, 0.2f, random_), scale = random_vector(1, 0.4f, 0, random_);
  const std::vector<float> inputs = random_.uniform(static_cast<size_t>(batch_->rows()) * kLayers * kInput, 2.0f);
  constexpr int kIndex = 4;
  const auto finish = [&](const std::string& name) {
    Device device(name);
    device.begin(hp_, batch_);
    Layer layer;
    layer.input_gate = device.weight(gate);
    layer.input_proj = device.weight(projection);
    layer.input_norm = device.weight(norm);
    layer.output_scale = device.weight(scale);
    const Rows x = device.rows(x_, kWidth);
    device->finish(layer, kIndex, device.rows(inputs, kLayers * kInput), x);
    return device.read(x);
  };
  std::vector<double> bounds;
  for_rows([&](int r, Rounding rounding) {
    const std::span<const float> x = row(x_, r, kWidth);
    const std::span<const float> own = row(inputs, r, kLayers * kInput).subspan(kIndex * kInput, kInput);
    const std::vector<float> gates = product(gate, {}, x);
    const std::vector<double> gate_bounds = product_bounds(gate, x, rounding);
    Bounded hidden;
    for (size_t i = 0; i < gates.size(); ++i) {
      const double exponent = activation_exponent(hp_.activation, gates[i]);
      const double value = gates[i] / (1 + std::exp(-exponent)) * own[i];
      hidden.values.push_back(static_cast<float>(value));
      // As of any hidden layer (hidden_layer()).
      hidden.bounds.push_back(1.13 * gate_bounds[i] * std::abs(own[i]) +
                              0x1p-24 * (16 + 4 * std::abs(exponent)) * std::abs(value));
    }
    std::vector<float> added = product(projection, {}, hidden.values);
    const auto of_added =
        norm_bounds(added, product_bounds(projection, hidden.values, rounding, hidden.bounds), norm.values);
    added = normed(added, norm);
    for (size_t i = 0; i < x.size(); ++i) {
      bounds.push_back(scale.values[0] * (of_added[i] + 6 * 0x1p-24 * (std::abs(x[i]) + std::abs(added[i]))));
    }
  });
  expect_close("finish", finish(backend()), finish("reference"), bounds);
}

TEST_P(LayerEnds, AScaleAlone) {
  const HostWeight scale = random_vector(1, 0.4f, 0, random_);
  Device device(backend());
  device.begin(hp_, batch_);
  Layer layer;
  layer.output_scale = device.weight(scale);
  const Rows x = device.rows(x_, kWidth);
  device->finish(layer, 0, {}, x);
  std::vector<float> expected = x_;
  for (float& value : expected) value *= scale.values[0];
  EXPECT_EQ(device.read(x), expected);
}

INSTANTIATE_TEST_SUITE_P(Types, LayerEnds,
                         testing::Combine(testing::ValuesIn(kBackends),
                                          testing::Values(GGML_TYPE_F32, GGML_TYPE_BF16, GGML_TYPE_Q8_0)),
                         [](const auto& info) {
                           return std::get<0>(info.param) + "_" + ggml_type_name(std::get<1>(info.param));
                         });

}  // namespace
}  // namespace tidal::parity
