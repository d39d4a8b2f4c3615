#include "model/family.h"

#include <algorithm>
#include <iterator>

#include "core/error.h"

namespace tidal {
namespace {

// llama files have their q and k permuted for adjacent pairs; the other families keep the halves of the original.
constexpr Family kFamilies[] = {
    {.architecture = "llama",
     .pairing = Rope::Pairing::Adjacent,
     .mlp = Family::Mlp::AsKeysSay,
     .weights_sum_to_one = true,
     .rope_factors = true},
    {.architecture = "qwen2", .biases = true},
    {.architecture = "qwen3", .norms = Family::Norms::Heads, .reranker = true},
    {.architecture = "qwen2moe", .mlp = Family::Mlp::Experts, .shared_expert = true, .biases = true},
    {.architecture = "qwen3moe",
     .norms = Family::Norms::Heads,
     .mlp = Family::Mlp::Experts,
     .weights_sum_to_one = true},
    {.architecture = "olmoe", .norms = Family::Norms::Rows, .mlp = Family::Mlp::Experts},
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

std::string family_names() {
  std::string names;
  for (const Family& family : kFamilies) {
    const bool last = &family == std::end(kFamilies) - 1;
    names += (names.empty() ? "" : last ? " or " : ", ") + std::string(family.architecture);
  }
  return names;
}

}  // namespace tidal
