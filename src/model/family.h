// What the files of a model family mean, where families differ.
#pragma once

#include <string>
#include <string_view>

#include "backend/hyperparameters.h"
#include "backend/weights.h"

namespace tidal {

struct Family {
  enum class Norms { None, Heads, Rows };        ///< of q and k before they are rotated: of each head, or of all as one
  enum class Mlp { Dense, Experts, AsKeysSay };  ///< a layer's

  /// An expert beside the chosen ones: none, always and behind a switch of its own, where the keys give its length, or
  /// what would be the MLP without them.
  enum class Shared { None, Switched, AsKeysSay, Mlp };

  /// How layers with a window rotate: by the same base without its scaling, or where a key gives a base of their own by
  /// that, without scaling or with that of all others.
  enum class WindowRope { Unscaled, OwnUnscaled, OwnScaled };

  std::string_view architecture;  ///< the GGUF name
  Rope::Pairing pairing = Rope::Pairing::Halves;
  Norms norms = Norms::None;
  Mlp mlp = Mlp::Dense;
  Shared shared = Shared::None;
  const char* ffn_norm = "ffn_norm";  ///< the name of the norm before the MLP
  int unrotated_every = 0;            ///< Hyperparameters
  bool weights_sum_to_one = false;    ///< those of the chosen experts
  bool expert_scales = false;         ///< ffn_*_exps.scale count, as in libllama in such files only
  bool pre_norms = true;              ///< of what attention and MLP get
  bool post_norms = false;            ///< of what they give
  int window_pattern = 0;             ///< keys may give a window, to layers by has_window() or as the keys say; 0: none
  WindowRope window_rope = WindowRope::Unscaled;
  Activation activation = Activation::Silu;
  float usual_logit_cap = 0;      ///< Hyperparameters::logit_cap where keys may give one and do not
  float usual_score_cap = 0;      ///< likewise of scores; 0: there is none, nor a key; else neither cap may be 0
  int usual_window = 0;           ///< where keys give none
  int by_width_at = 0;            ///< with so many layers scores go by heads of width / heads elements
  bool sink_logits = false;       ///< a further score of each softmax
  bool kinds = false;             ///< keys tell layers with a window from the others (model/layer_kinds.h)
  bool unscaled_scores = false;   ///< scores are products as they are
  bool value_norm = false;        ///< Hyperparameters
  bool logit_cap = false;         ///< keys may give one
  bool expert_norms = false;      ///< Experts::own_norms
  bool expert_biases = false;     ///< of the router and the experts
  bool embedding_root = false;    ///< embeddings are multiplied by the root of the width
  bool scales = false;            ///< keys give factors on embedding, attention, residual and logits
  bool temperature = false;       ///< keys give one of attention (Hyperparameters::temperature())
  bool yarn_keys = false;         ///< keys give YaRN's betas and log multiplier, else the paper's
  bool rotation_key = false;      ///< rope.scaling.finetuned says whether q and k are rotated at all
  bool rope_sections = false;     ///< rope.dimension_sections counts
  bool mixed_sections = false;    ///< rope.dimension_sections must be there and takes turns pair by pair
  bool rope_factors = false;      ///< rope_freqs.weight counts, as in libllama in such files only
  bool long_rope = false;         ///< rope_factors_long and _short.weight count
  bool biases = false;            ///< of q, k and v, in the published models
  bool reranker = false;          ///< files may hold a reranker's head
  bool hybrid = false;            ///< layers are recurrent but for every so-manieth, whose attention is gated
  bool delta_neighbours = false;  ///< DeltaNet::neighbours; tensors then hold what belongs to a key head together
};

/// Whether a layer has a window where of `pattern` layers the last sees all (0: none does).
constexpr bool has_window(int layer, int64_t pattern) { return pattern == 0 || layer % pattern < pattern - 1; }

/// nullptr for an architecture that is not supported.
const Family* find_family(std::string_view architecture);
/// Of an architecture that is.
const Family& family_of(const Hyperparameters& hp);
/// All names, for messages: "llama, qwen2, ... or granitemoe".
std::string family_names();
/// What a layer is by its index: how it rotates and scales queries.
void set_kind(const Hyperparameters& hp, int index, Layer& layer);

}  // namespace tidal
