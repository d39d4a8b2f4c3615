#include "model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace tidal {
namespace {

/// The pair that turns `rotations` times over the original context.
double pair_of(double rotations, int dims, double base, int original_context) {
  return dims * std::log(original_context / (rotations * 2 * std::numbers::pi)) / (2 * std::log(base));
}

/// YaRN's softmax temperature, as a factor on queries and keys (arXiv 2309.00071, equation 22).
double yarn_magnitude(double factor, double multiplier) {
  return factor <= 1 ? 1.0 : 0.1 * multiplier * std::log(factor) + 1.0;
}

}  // namespace

Rope make_rope(Rope::Pairing pairing, int dims, double base, std::span<const float> divisors,
               const RopeScaling& scaling) {
  Rope rope;
  rope.pairing = pairing;
  rope.dims = dims;
  double magnitude = scaling.attention;
  const bool yarn = scaling.kind == RopeScaling::Kind::Yarn;
  double low = 0, high = 0;
  if (yarn) {
    low = std::max(0.0, std::floor(pair_of(scaling.beta_fast, dims, base, scaling.original_context)));
    high = std::min(dims - 1.0, std::ceil(pair_of(scaling.beta_slow, dims, base, scaling.original_context)));
    if (scaling.extrapolation != 0) magnitude *= yarn_magnitude(scaling.factor, 1.0);
    if (scaling.log_multiplier != 0) magnitude /= yarn_magnitude(scaling.factor, scaling.log_multiplier);
  }
  for (int i = 0; i < dims / 2; ++i) {
    const double divisor = divisors.empty() ? 1.0 : divisors[i];
    const double original = std::pow(base, -2.0 * i / dims) / divisor;
    double frequency = original;
    if (scaling.kind != RopeScaling::Kind::None) frequency /= scaling.factor;
    if (yarn) {
      const double ramp = std::clamp((i - low) / std::max(0.001, high - low), 0.0, 1.0);
      const double keep = (1.0 - ramp) * scaling.extrapolation;
      frequency = frequency * (1.0 - keep) + original * keep;
    }
    rope.frequencies.push_back(frequency);
  }
  rope.magnitude = static_cast<float>(magnitude);
  return rope;
}

}  // namespace tidal
