// An engine over a small random model, for the engine's tests.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "support/backends.h"
#include "support/error.h"
#include "support/small_model.h"

namespace tidal::test {

constexpr int kBudget = 24;

inline Plan small_plan(int budget = kBudget, int layers = 6) {
  return Plan::tidal(layers, layers - 2, default_policy(budget));
}

/// Backend, model and engine, in the order in which they need each other.
struct SmallEngine {
  explicit SmallEngine(const std::string& name, ggml_type type = GGML_TYPE_F32, const Plan& plan = small_plan(),
                       const EngineOptions& options = {.context = 512, .tokens = 4096, .chunk = 512, .sequences = 8},
                       int threads = 2)
      : SmallEngine(name, small_shape(static_cast<int>(plan.roles.size())), type, plan, options, threads) {}
  /// Of another shape.
  SmallEngine(const std::string& name, const Hyperparameters& hp, ggml_type type, const Plan& plan,
              const EngineOptions& options, int threads = 2)
      : backend(make_backend(name, threads)),
        model(random_small_model(hp, type, *backend)),
        engine(*backend, model, plan, options) {}

  /// A sequence that holds `count` tokens of the stream.
  Sequence prefilled(int count, uint64_t stream) {
    Sequence sequence = engine.create();
    engine.prefill(sequence, random_tokens(count, stream));
    return sequence;
  }

  /// K and V of all positions, those in 8 bits rounded to bf16: [layer][position][kv_head][K | V].
  std::vector<Bf16> cache(const Sequence& sequence) {
    std::vector<Bf16> values;
    for (const KvLayer& layer : engine.pool().layers()) {
      if (!layer.data) continue;
      const size_t row = size_t{2} * layer.head_dim;
      std::vector<std::byte> tile(static_cast<size_t>(layer.tile_bytes()));
      std::vector<float> elements(row);
      std::vector<Bf16> own(static_cast<size_t>(sequence.length()) * layer.kv_heads * row);
      for (int b = 0; b < blocks_for(sequence.length()); ++b) {
        for (int h = 0; h < layer.kv_heads; ++h) {
          backend->read(tile.data(), layer.tile(engine.pool().slot(sequence.blocks()[b]), h), tile.size());
          for (int p = b * kBlockTokens; p < std::min(sequence.length(), (b + 1) * kBlockTokens); ++p) {
            read_kv_row(layer.row_layout(), tile.data() + p % kBlockTokens * layer.row_bytes(), elements.data(),
                        elements.data() + layer.head_dim);
            std::transform(elements.begin(), elements.end(),
                           own.begin() + static_cast<ptrdiff_t>((static_cast<size_t>(p) * layer.kv_heads + h) * row),
                           to_bf16);
          }
        }
      }
      values.insert(values.end(), own.begin(), own.end());
    }
    return values;
  }

  std::unique_ptr<Backend> backend;
  Model model;
  Engine engine;
};

inline std::vector<float> copy(std::span<const float> logits) { return {logits.begin(), logits.end()}; }

inline bool same_bits(const std::vector<Bf16>& a, const std::vector<Bf16>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](Bf16 x, Bf16 y) { return x.bits == y.bits; });
}

}  // namespace tidal::test
