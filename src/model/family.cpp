#include "model/family.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "core/error.h"

namespace tidal {
namespace {

// llama files have their q and k permuted for adjacent pairs, others keep the halves of the original.
constexpr auto kAdjacent = Rope::Pairing::Adjacent;

constexpr Family kGranite{.architecture = "granite",
                          .pairing = kAdjacent,
                          .mlp = Family::Mlp::AsKeysSay,
                          .shared = Family::Shared::AsKeysSay,
                          .weights_sum_to_one = true,
                          .scales = true,
                          .rotation_key = true,
                          .rope_factors = true};
constexpr Family granite_moe() {
  Family family = kGranite;
  family.architecture = "granitemoe";
  family.rotation_key = false;
  return family;
}

// Layers are Gated DeltaNets but for every fourth.
constexpr Family kQwen35{.architecture = "qwen35",
                         .norms = Family::Norms::Heads,
                         .ffn_norm = "post_attention_norm",
                         .mixed_sections = true,
                         .hybrid = true};
constexpr Family hybrid_experts(std::string_view architecture) {
  Family family = kQwen35;
  family.architecture = architecture;
  family.mlp = Family::Mlp::Experts;
  family.shared = Family::Shared::Switched;
  family.weights_sum_to_one = true;
  family.expert_scales = true;
  return family;
}
constexpr Family qwen3_next() {
  Family family = hybrid_experts("qwen3next");
  family.mixed_sections = false;
  family.delta_neighbours = true;
  return family;
}

constexpr Family kFamilies[] = {
    {.architecture = "llama",
     .pairing = kAdjacent,
     .mlp = Family::Mlp::AsKeysSay,
     .weights_sum_to_one = true,
     .expert_scales = true,
     .rope_factors = true},
    {.architecture = "mistral3",
     .pairing = kAdjacent,
     .mlp = Family::Mlp::AsKeysSay,
     .weights_sum_to_one = true,
     .expert_scales = true,
     .temperature = true,
     .yarn_keys = true,
     .rope_factors = true},
    {.architecture = "qwen2", .biases = true},
    {.architecture = "qwen3", .norms = Family::Norms::Heads, .reranker = true},
    {.architecture = "qwen2moe", .mlp = Family::Mlp::Experts, .shared = Family::Shared::Switched, .biases = true},
    {.architecture = "qwen3moe",
     .norms = Family::Norms::Heads,
     .mlp = Family::Mlp::Experts,
     .weights_sum_to_one = true,
     .expert_scales = true},
    {.architecture = "olmoe", .norms = Family::Norms::Rows, .mlp = Family::Mlp::Experts},
    {.architecture = "olmo2",
     .norms = Family::Norms::Rows,
     .pre_norms = false,
     .post_norms = true,
     .window_pattern = 4,
     .window_rope = Family::WindowRope::Unscaled},
    {.architecture = "gemma2",
     .post_norms = true,
     .window_pattern = 2,
     .window_rope = Family::WindowRope::OwnScaled,
     .activation = Activation::Gelu,
     .usual_logit_cap = 30,
     .usual_score_cap = 50,
     .usual_window = 4096,
     .by_width_at = 46,
     .logit_cap = true,
     .embedding_root = true},
    {.architecture = "gemma3",
     .norms = Family::Norms::Heads,
     .post_norms = true,
     .window_pattern = 6,
     .window_rope = Family::WindowRope::OwnUnscaled,
     .activation = Activation::Gelu,
     .by_width_at = 62,
     .logit_cap = true,
     .embedding_root = true},
    {.architecture = "gemma4",
     .norms = Family::Norms::Heads,
     .mlp = Family::Mlp::AsKeysSay,
     .shared = Family::Shared::Mlp,
     .weights_sum_to_one = true,
     .expert_scales = true,
     .post_norms = true,
     .window_pattern = 6,
     .window_rope = Family::WindowRope::OwnUnscaled,
     .activation = Activation::Gelu,
     .usual_logit_cap = 30,
     .kinds = true,
     .unscaled_scores = true,
     .value_norm = true,
     .logit_cap = true,
     .expert_norms = true,
     .embedding_root = true,
     .rope_factors = true},
    {.architecture = "smollm3", .pairing = kAdjacent, .unrotated_every = 4},
    {.architecture = "seed_oss", .ffn_norm = "post_attention_norm", .biases = true},
    {.architecture = "phi3", .long_rope = true},
    {.architecture = "glm4", .pairing = kAdjacent, .post_norms = true, .rope_sections = true},
    {.architecture = "gpt-oss",
     .mlp = Family::Mlp::Experts,
     .ffn_norm = "post_attention_norm",
     .weights_sum_to_one = true,
     .window_pattern = 2,
     .window_rope = Family::WindowRope::OwnScaled,
     .activation = Activation::ClampedSwiGlu,
     .sink_logits = true,
     .expert_biases = true,
     .biases = true},
    kGranite,
    granite_moe(),
    kQwen35,
    hybrid_experts("qwen35moe"),
    qwen3_next(),
};

}  // namespace

const Family* find_family(std::string_view architecture) {
  const auto* const found = std::find_if(std::begin(kFamilies), std::end(kFamilies),
                                         [&](const Family& family) { return family.architecture == architecture; });
  return found == std::end(kFamilies) ? nullptr : found;
}

const Family& family_of(const Hyperparameters& hp) {
  const Family* const family = find_family(hp.architecture);
  if (!family) fail("architecture '{}' is not supported, expected {}", hp.architecture, family_names());
  return *family;
}

void set_kind(const Hyperparameters& hp, int index, Layer& layer) {
  layer.rotates = hp.rotates(index);
  layer.window_rope = hp.rotates_by_window_rope(index);
  if (family_of(hp).unscaled_scores) layer.query_scale = std::sqrt(static_cast<float>(hp.kv(index).head_dim));
}

std::string family_names() {
  std::string names;
  for (const Family& family : kFamilies) {
    const bool last = &family == std::end(kFamilies) - 1;
    names += (names.empty() ? "" : last ? " or " : ", ") + std::string(family.architecture);
  }
  return names;
}

}  // namespace tidal
