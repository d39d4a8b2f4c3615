// What a hidden layer makes of gate and up, on the device.
#pragma once

#include "backend/hyperparameters.h"

namespace tidal::cuda {

/// As Activation says. Every operation by itself: left to the compiler, some would be fused in one kernel and not in
/// another.
__device__ inline float activated(Activation activation, float gate, float up) {
  float slope = gate;
  if (activation == Activation::ClampedSwiGlu) {
    // Comparisons keep NaN.
    gate = gate > kClampedLimit ? kClampedLimit : gate;
    up = up > kClampedLimit ? kClampedLimit : up < -kClampedLimit ? -kClampedLimit : up;
    up = __fadd_rn(up, 1.0f);
    slope = __fmul_rn(kClampedSlope, gate);
  } else if (activation == Activation::Gelu) {
    constexpr float kTwiceRoot = 1.5957691216057308f;  // 2 sqrt(2 / pi)
    const float cubed = __fmul_rn(__fmul_rn(gate, gate), gate);
    slope = __fmul_rn(kTwiceRoot, __fadd_rn(gate, __fmul_rn(0.044715f, cubed)));
  }
  return __fmul_rn(__fdiv_rn(gate, __fadd_rn(1.0f, expf(-slope))), up);
}

}  // namespace tidal::cuda
