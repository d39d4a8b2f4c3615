#include "backend/cuda/models.h"

#include <fmt/core.h>

#include <algorithm>
#include <iterator>

#include "backend/cuda/attention/attention.h"
#include "backend/cuda/delta/delta.h"
#include "backend/cuda/experts/chosen_products.h"
#include "backend/cuda/experts/route.h"
#include "backend/cuda/products/matrices.h"
#include "backend/cuda/runtime/launch.h"

namespace tidal::cuda {
namespace {

/// Elements of a head that attention has kernels for.
constexpr int kHeadDims[] = {16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 256, 512};

bool same_rope(const Rope& a, const Rope& b) {
  return a.pairing == b.pairing && a.dims == b.dims && a.frequencies == b.frequencies && a.magnitude == b.magnitude;
}

/// What of its heads it cannot compute; "" where it can.
std::string unsupported_heads(const Hyperparameters& hp) {
  for (const int dim : {hp.head_dim, hp.window_kv ? hp.window_kv.head_dim : hp.head_dim}) {
    if (std::find(std::begin(kHeadDims), std::end(kHeadDims), dim) == std::end(kHeadDims)) {
      return fmt::format("heads of {} elements", dim);
    }
    if (dim > 256 && shared_memory_limit() < kWideHeadMemory) {
      return fmt::format("heads of {} elements, on this device,", dim);
    }
  }
  return "";
}

}  // namespace

std::string unsupported(const Hyperparameters& hp) {
  const Experts& experts = hp.experts;
  if (std::string heads = unsupported_heads(hp); !heads.empty()) return heads;
  if (experts.used > kMostChosen) return "models whose tokens go through more than 32 experts each";
  if (experts.count > kMostExperts) return "models of more than 1024 experts";
  if (experts && !chosen_fit(hp.width, experts.used * padded_ffn(experts.ffn))) {
    return "mixtures of experts as wide as these, on this device,";
  }
  if (hp.post_norms && ((experts && !experts.own_norms) || hp.delta)) {
    return "norms behind experts or recurrent layers";
  }
  if (!hp.delta) return "";
  if (hp.delta.head_dim % 8 != 0 || hp.delta.head_dim > kMostDeltaDim) {
    return "recurrent layers with heads of other sizes than multiples of 8 up to 256";
  }
  return hp.delta.value_heads < 2 ? "recurrent layers of a single value head" : "";
}

bool same_shape(const Hyperparameters& a, const Hyperparameters& b) {
  return a.width == b.width && a.heads == b.heads && a.kv_heads == b.kv_heads && a.head_dim == b.head_dim &&
         a.ffn == b.ffn && a.experts == b.experts && a.post_norms == b.post_norms && a.delta == b.delta &&
         a.vocab == b.vocab && a.windows == b.windows && a.activation == b.activation &&
         a.rms_epsilon == b.rms_epsilon && a.embedding_scale == b.embedding_scale && a.query_scale == b.query_scale &&
         a.temperature_scale == b.temperature_scale && a.temperature_length == b.temperature_length &&
         a.window_kv == b.window_kv && a.ffns == b.ffns && a.value_norm == b.value_norm &&
         a.layer_input == b.layer_input && a.score_cap == b.score_cap && a.logit_cap == b.logit_cap &&
         same_rope(a.rope, b.rope) && same_rope(a.window_rope, b.window_rope);
}

}  // namespace tidal::cuda
