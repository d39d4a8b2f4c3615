// Rotary position embedding frequencies, with the scalings that GGUF files ask for.
#pragma once

#include <span>
#include <vector>

#include "backend/hyperparameters.h"

namespace tidal {

/// How a model stretches its positions beyond the context it was first trained for.
struct RopeScaling {
  enum class Kind { None, Linear, Yarn };
  Kind kind = Kind::None;
  double factor = 1.0;        ///< new context over the original one
  int original_context = 0;   ///< YaRN: positions before the stretch
  double beta_fast = 32;      ///< YaRN: rotations over the original context above which a pair keeps its frequency
  double beta_slow = 1;       ///< YaRN: rotations below which a pair is stretched fully
  double extrapolation = 1;   ///< YaRN: weight of the ramp between the two
  double log_multiplier = 0;  ///< YaRN: 0, or DeepSeek's `mscale_all_dim`
  double attention = 1;       ///< factor on the magnitude
};

/// base^(-2i/dims) for every pair, divided by `divisors` (llama3's factors, empty for none), scaled as asked; the
/// magnitude as in llama.cpp. YaRN: arXiv 2309.00071, section 3.4.
Rope make_rope(Rope::Pairing pairing, int dims, double base, std::span<const float> divisors,
               const RopeScaling& scaling);

}  // namespace tidal
