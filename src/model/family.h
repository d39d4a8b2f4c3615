// What the files of a model family mean, where families differ.
#pragma once

#include <string>
#include <string_view>

#include "backend/hyperparameters.h"

namespace tidal {

struct Family {
  enum class Norms { None, Heads, Rows };        ///< of q and k before they are rotated: of each head, or of all as one
  enum class Mlp { Dense, Experts, AsKeysSay };  ///< a layer's

  std::string_view architecture;  ///< the GGUF name
  Rope::Pairing pairing = Rope::Pairing::Halves;
  Norms norms = Norms::None;
  Mlp mlp = Mlp::Dense;
  bool weights_sum_to_one = false;  ///< those of the chosen experts
  bool shared_expert = false;       ///< beside the chosen ones, behind a gate of its own
  bool rope_factors = false;        ///< rope_freqs.weight counts, as in libllama in such files only
  bool biases = false;              ///< of q, k and v, in the published models
  bool reranker = false;            ///< files may hold a reranker's head
};

/// nullptr for an architecture that is not supported.
const Family* find_family(std::string_view architecture);
/// Of an architecture that is.
const Family& family_of(const Hyperparameters& hp);
/// All names, for messages: "llama, qwen2, ... or olmoe".
std::string family_names();

}  // namespace tidal
