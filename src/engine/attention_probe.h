// What attention reads at a decode step, and how much of the mass that is.
#pragma once

#include <span>
#include <vector>

#include "engine/engine.h"

namespace tidal {

/// How one layer attended at one decode step.
struct LayerAttention {
  Role role = Role::Dense;
  /// [heads] share of the layer's own softmax over the whole context that the positions it read hold: 1 for Dense and
  /// Select.
  std::vector<float> mass;
  /// [units] positions that a Select or Scan layer chose, ascending; empty for other roles and while the context fits
  /// in the budget.
  std::vector<std::vector<int32_t>> selected;
  /// [units] of a Scan layer: of the positions that the exact scores would choose by the same policy, reserved ones
  /// aside, the share that it chose. Empty for other roles.
  std::vector<float> agreement;
  /// [heads] of a Scan layer: the share that `mass` is, by the softmax of the scores that it selected by. What top-p
  /// goes by (Policy::top_p). Empty for other roles, and where AttentionProbe was not asked for it.
  std::vector<float> scored_mass;

  double mean_mass() const;
};

/// Watches the decode steps of an engine, from construction to destruction; of a batch the first sequence that decodes
/// sparsely, else the first. Reads K of the whole context back from the backend at every Sparse and Scan layer, so it
/// slows decoding down, and changes nothing. Steps of more than one row are ignored.
class AttentionProbe final : public ForwardObserver {
 public:
  /// scored: also makes LayerAttention::scored_mass, for which the sketches are read back, too.
  explicit AttentionProbe(Engine& engine, bool scored = false);
  ~AttentionProbe() override { engine_.set_observer(nullptr); }
  AttentionProbe(const AttentionProbe&) = delete;
  AttentionProbe& operator=(const AttentionProbe&) = delete;

  /// [layers] of the last decode step.
  std::span<const LayerAttention> layers() const { return layers_; }

  void attended(int layer, const Batch& batch, Rows q, KvLayer kv, const Selection& selection) override;

 private:
  /// Raw scores q.k of the query heads of one KV head over the whole context, to scores_.
  void score(const Chunk& chunk, const Rows& q, KvLayer kv, int kv_head);
  /// Puts those of the sketches in the place of the full blocks' scores, as a Scan layer has them.
  void score_by_sketches(const Chunk& chunk, const Rows& q, KvLayer kv, int kv_head);
  /// The mass of the selected positions by scores_, [heads].
  std::vector<float> selected_mass(double scale) const;
  /// [heads of the group] queries of one KV head.
  std::vector<float> queries(const Chunk& chunk, const Rows& q, int head_dim, int kv_head);

  Engine& engine_;
  bool scored_;
  Backend& backend_;
  Hyperparameters hp_;
  std::vector<LayerAttention> layers_;
  std::vector<std::vector<int32_t>> selected_;  // [units] of the last Select or Scan layer
  std::vector<std::vector<float>> scores_;      // [heads][context]
};

}  // namespace tidal
