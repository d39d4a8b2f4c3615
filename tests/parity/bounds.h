// How far a backend may be from the reference: bounds derived from the number formats it computes in.
//
// Rounding errors are taken as independent and of mean 0, each at most e_i. By Hoeffding's inequality their sum exceeds
// 7 sqrt(sum e_i^2) with a probability below 2 exp(-49 / 2) = 5e-11. Where the worst case, sum e_i, is smaller, it
// holds. Float32 sums of n terms get the worst case, n roundings of 2^-24 each, whatever the order of summation.
#pragma once

#include <span>
#include <utility>
#include <vector>

#include "backend/reference/select.h"
#include "parity/setup.h"

namespace tidal::parity {

/// What a backend rounds before it multiplies with weights; products and sums are float32 at least.
enum class Rounding {
  None,
  Dot,    ///< activations to the type that ggml's dot product with this weight type takes
  Input,  ///< activations to bf16, then to 16 bits with a step for 128 columns
  Bf16,   ///< weights and activations to bf16
};

/// That of a row of a chunk of `rows` rows and weights of `type`.
Rounding rounding_of(const std::string& backend, int rows, ggml_type type);

/// Bounds of y = W x for one row: [W.rows]. `input` [W.cols], when given, bounds the error of x itself.
std::vector<double> product_bounds(const HostWeight& weight, std::span<const float> x, Rounding rounding,
                                   std::span<const double> input = {});

/// The root mean square norm of a row, with an epsilon of 1e-5.
std::vector<float> normed(std::span<const float> x, const HostWeight& weight);
/// W x + bias in double; the bias may be empty.
std::vector<float> product(const HostWeight& weight, const HostWeight& bias, std::span<const float> x);

/// Values and how far a backend's may be from them.
struct Bounded {
  std::vector<float> values;
  std::vector<double> bounds;
};
inline constexpr Activation kActivations[] = {Activation::Silu, Activation::Gelu, Activation::ClampedSwiGlu};
/// Gate and up as the activation takes them.
std::pair<double, double> clamped(Activation activation, float gate, float up);
/// z, where the hidden layer is gate / (1 + exp(-z)) * up.
double activation_exponent(Activation activation, double gate);
/// The hidden layer of gate x + bias and up x + bias of one row: [gate.rows].
Bounded hidden_layer(const HostWeight& gate, const HostWeight& b_gate, const HostWeight& up, const HostWeight& b_up,
                     std::span<const float> x, Rounding rounding, Activation activation = Activation::Silu);

/// The bounds of one query head's attention over some rows of the cache (and its sink, or null), q.k capped (0: not),
/// when q and the softmax weights are rounded to bf16 (`bf16`) or everything is float32: [head_dim].
std::vector<double> attention_bounds(const float* q, const HostCache& cache, const Chunk& chunk, int kv_head,
                                     std::span<const int32_t> positions, bool bf16, const float* sink = nullptr,
                                     double cap = 0);

/// The same for all rows and heads of a batch: [rows, q_width]. Sparse chunks read `selected` [rows, units, budget],
/// unless it is empty.
std::vector<double> attention_bounds(const Hyperparameters& hp, const HostBatch& batch, const HostCache& cache,
                                     const std::vector<float>& q, bool bf16, const Policy& policy = {},
                                     const std::vector<int32_t>& selected = {},
                                     const std::vector<float>& sink_logits = {});

/// Whether the rounding of sum pooling can decide which positions of a set are chosen. `own`: the scores of its heads,
/// off by `of_scores` themselves, where these are not the same bits everywhere.
bool rounding_decides(std::span<const reference::Scores> own, const Policy& policy, double scale,
                      const std::vector<int32_t>& chosen, double of_scores = 0);

/// The root mean square norm's result and bounds, given bounds of x.
std::vector<double> norm_bounds(std::span<const float> x, std::span<const double> bounds,
                                std::span<const float> weight);

}  // namespace tidal::parity
