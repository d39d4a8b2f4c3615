// Pages: runs of positions that are selected as a whole by a summary of their keys, as others do it. For comparisons.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"

namespace tidal {

/// What a page's score is, of one query head q and the page's keys k; sums run over the head's channels d.
enum class PageScore : uint8_t {
  /// sum of max(q[d] min k[d], q[d] max k[d]), which no key of the page exceeds: Quest (arXiv 2406.10774).
  Bounds,
  /// q . mean + |q| deviation / 2: UNIQUE (arXiv 2605.27740). |q| is q's length, the deviation one number a page: the
  /// root of the mean square distance of its keys from their mean.
  Deviation,
  /// sum of q[d] mean k[d] + |q[d]| deviation k[d], channel by channel: as large as the bounds.
  ChannelDeviations,
};

struct PageRule {
  PageScore score = PageScore::Bounds;
  int positions = 16;  ///< of a page; divides kBlockTokens

  /// Of what is kept of a page and KV head, in bf16.
  int64_t side_bytes(int head_dim) const {
    return int64_t{2} * (score == PageScore::Deviation ? head_dim + 1 : 2 * head_dim);
  }
  bool operator==(const PageRule&) const = default;
};

/// "quest 16", "unique 8", "deviations 16".
std::string to_string(const PageRule& rule);
/// "quest", "unique" or "deviations", with the positions of a page behind a colon; without them the papers': 16, 8, 16.
/// Throws Error for any other.
PageRule page_rule_from(const std::string& word);

/// Throws Error where pages cannot be compared: on a device.
void check_pages(const Backend& backend);

/// A page's scores by what is kept of it: keys [positions][head_dim] as the cache has them, queries [heads][head_dim].
/// scores: [heads].
void page_scores(PageScore score, int head_dim, std::span<const float> keys, std::span<const float> queries,
                 std::span<float> scores);

/// How much is read at a decode step where the layers that read selected positions do it by pages.
struct PageReads {
  int pages = 0;      ///< of a set, the first and the last one included, which are always read
  int64_t bytes = 0;  ///< of the step, as Engine::decode_bytes() counts them
};

/// As many pages as can be read with their summaries for no more bytes than `plan` reads at a context where it is
/// sparse; at least the first and the last one.
PageReads pages_for_bytes(const Engine& engine, const Plan& plan, const PageRule& rule, int context);
/// Bytes of a decode step at any context: those of the plan where that is not sparse.
int64_t page_decode_bytes(const Engine& engine, const Plan& plan, const PageRule& rule, int context);

/// The policy, in numbers, by which `pages` of a context's pages are selected: the first and the last one always, and
/// as many more as hold the policy's sinks and recent positions.
Policy page_policy(Policy policy, const PageRule& rule, int context, int pages);

/// From construction to destruction the engine's sparse steps select by pages instead of sketches: what a Scan layer
/// selects, and a Sparse one reads, are the pages with the highest scores, by the plan's scope and pooling, as many as
/// pages_for_bytes() says. The first page and the last one are always among them, and more where the policy has sinks
/// or recent positions: a mean hides the one position that most of a page's mass is on, and at the start of a text that
/// is what loses most (docs/tasks.md). Attention to them is the backend's. For plans without Select layers, on
/// backends whose memory is the host's.
class PageAttention final : public ForwardObserver {
 public:
  PageAttention(Engine& engine, const PageRule& rule);
  ~PageAttention() override { engine_.set_observer(nullptr); }
  PageAttention(const PageAttention&) = delete;
  PageAttention& operator=(const PageAttention&) = delete;

  bool attends(int layer, const Batch& batch, Rows q, KvLayer kv, Rows out, const Weight& sink_logits) override;
  void attended(int, const Batch&, Rows, KvLayer, const Selection&) override {}

 private:
  using PageTable = std::vector<std::vector<float>>;  // [heads][pages]

  /// The scores of the pages of one block by the query heads of one KV head.
  void score(const Chunk& chunk, Rows q, KvLayer kv, int kv_head, int block, PageTable& scores) const;
  /// Every query head's scores of all pages.
  PageTable scores(const Chunk& chunk, Rows q, KvLayer kv) const;
  /// The positions of a chunk's sets, [units].
  std::vector<std::vector<int32_t>> select(const Chunk& chunk, Rows q, KvLayer kv) const;

  Engine& engine_;
  PageRule rule_;
  Hyperparameters hp_;
  std::vector<std::vector<std::vector<int32_t>>> selected_;  // [chunks][units], of the last Scan layer
};

}  // namespace tidal
