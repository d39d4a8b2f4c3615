#include "eval/pages.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>

#include "backend/reference/math.h"
#include "backend/reference/select.h"
#include "core/bf16.h"
#include "core/error.h"

namespace tidal {
namespace {

struct PageWord {
  const char* word;
  PageRule usual;
};
constexpr std::array kWords = {PageWord{"quest", {PageScore::Bounds, 16}},
                               PageWord{"unique", {PageScore::Deviation, 8}},
                               PageWord{"deviations", {PageScore::ChannelDeviations, 16}}};

constexpr float kOffset = 0.5f;  // of UNIQUE's deviation

float kept(double value) { return to_float(to_bf16(static_cast<float>(value))); }

/// Of one channel of a page's keys.
struct Channel {
  float low = std::numeric_limits<float>::infinity(), high = -low;
  double mean = 0, squares = 0;  // of the distances from the mean
};

Channel channel_of(std::span<const float> keys, int head_dim, int d) {
  Channel channel;
  const size_t count = keys.size() / static_cast<size_t>(head_dim);
  for (size_t i = 0; i < count; ++i) {
    const float key = keys[i * static_cast<size_t>(head_dim) + static_cast<size_t>(d)];
    channel.low = std::fmin(channel.low, key);
    channel.high = std::fmax(channel.high, key);
    const double before = key - channel.mean;
    channel.mean += before / static_cast<double>(i + 1);
    channel.squares += before * (key - channel.mean);
  }
  return channel;
}

/// Positions of the last page, 1 to rule.positions.
int last_page(const PageRule& rule, int context) { return (context - 1) % rule.positions + 1; }

int page_count(const PageRule& rule, int context) { return (context + rule.positions - 1) / rule.positions; }

/// Bytes of a step that reads `pages` of a set in every layer that reads selected positions.
int64_t bytes_of(const Engine& engine, const Plan& plan, const PageRule& rule, int context, int pages) {
  const Hyperparameters& hp = engine.model().hp;
  const KvType type = engine.options().kv_type;
  const int positions = (pages - 1) * rule.positions + last_page(rule, context);
  int64_t bytes = engine.model().decode_weight_bytes() + hp.state_bytes();
  for (int l = 0; l < hp.layers; ++l) {
    if (hp.recurs(l)) continue;
    const Role role = plan.roles[static_cast<size_t>(l)];
    KvShape kv = hp.kv(l);
    if (!reads_selected(role)) {
      bytes += kv.row_bytes(type) * (context - hp.first_seen(l, context - 1));
      continue;
    }
    // The first page and the last one are read whatever their summaries say.
    const int summaries = std::max(page_count(rule, context) - 2, 0);
    if (role == Role::Scan) bytes += rule.side_bytes(kv.head_dim) * kv.heads * summaries;
    if (plan.policy.scope == Scope::Head) kv.heads = hp.heads;
    bytes += kv.row_bytes(type) * positions;
  }
  return bytes;
}

}  // namespace

std::string to_string(const PageRule& rule) {
  for (const PageWord& known : kWords) {
    if (known.usual.score == rule.score) return fmt::format("{} {}", known.word, rule.positions);
  }
  return "";
}

PageRule page_rule_from(const std::string& word) {
  const size_t colon = std::min(word.find(':'), word.size());
  for (const PageWord& known : kWords) {
    if (word.substr(0, colon) != known.word) continue;
    PageRule rule = known.usual;
    if (colon == word.size()) return rule;
    const char* const begin = word.data() + colon + 1;
    const char* const end = word.data() + word.size();
    const auto [read, error] = std::from_chars(begin, end, rule.positions);
    const bool divides =
        error == std::errc() && read == end && rule.positions > 0 && kBlockTokens % rule.positions == 0;
    if (divides) return rule;
    fail("--pages: '{}' given, expected pages of 1, 2, 4, 8, 16, 32 or 64 positions", word);
  }
  fail("--pages: '{}' is not known, expected quest, unique or deviations", word);
}

void page_scores(PageScore score, int head_dim, std::span<const float> keys, std::span<const float> queries,
                 std::span<float> scores) {
  const auto dim = static_cast<size_t>(head_dim);
  std::vector<float> first(dim), second(dim);  // what is kept of the channels
  double squares = 0;
  const double count = static_cast<double>(keys.size()) / head_dim;
  for (size_t d = 0; d < dim; ++d) {
    const Channel channel = channel_of(keys, head_dim, static_cast<int>(d));
    squares += channel.squares / count;
    first[d] = score == PageScore::Bounds ? kept(channel.low) : kept(channel.mean);
    second[d] = score == PageScore::Bounds ? kept(channel.high) : kept(std::sqrt(channel.squares / count));
  }
  const float deviation = kept(std::sqrt(squares));
  for (size_t h = 0; h < scores.size(); ++h) {
    const float* const q = queries.data() + h * dim;
    double sum = 0, length = 0;
    for (size_t d = 0; d < dim; ++d) {
      length += static_cast<double>(q[d]) * q[d];
      if (score == PageScore::Bounds) {
        sum += std::fmax(q[d] * first[d], q[d] * second[d]);
      } else {
        sum += q[d] * first[d];
        if (score == PageScore::ChannelDeviations) sum += std::fabs(q[d]) * second[d];
      }
    }
    if (score == PageScore::Deviation) sum += kOffset * std::sqrt(length) * deviation;
    scores[h] = static_cast<float>(sum);
  }
}

PageReads pages_for_bytes(const Engine& engine, const Plan& plan, const PageRule& rule, int context) {
  const int64_t most = engine.decode_bytes(context, plan);
  const int all = page_count(rule, context);
  int fits = std::min(2, all), too_many = all + 1;
  while (too_many - fits > 1) {
    const int middle = fits + (too_many - fits) / 2;
    (bytes_of(engine, plan, rule, context, middle) <= most ? fits : too_many) = middle;
  }
  return {fits, bytes_of(engine, plan, rule, context, fits)};
}

int64_t page_decode_bytes(const Engine& engine, const Plan& plan, const PageRule& rule, int context) {
  return plan.sparse_at(context) ? pages_for_bytes(engine, plan, rule, context).bytes
                                 : engine.decode_bytes(context, plan);
}

Policy page_policy(Policy policy, const PageRule& rule, int context, int pages) {
  policy.budget = pages;
  const int recent = 1 + page_count(rule, std::max(policy.recent - last_page(rule, context), 0));
  const int sinks = std::max(page_count(rule, policy.sinks), 1);
  // Where the pages are few, the first ones before what else is recent, but for the last.
  policy.recent = std::clamp(recent, 1, std::max(pages - sinks, 1));
  policy.sinks = std::min(sinks, pages - policy.recent);
  policy.top_p = 1;
  return policy;
}

void check_pages(const Backend& backend) {
  if (const std::string device = backend.device(); !device.empty()) {
    fail("--pages: pages are compared on the host's processor, not on {}", device);
  }
}

PageAttention::PageAttention(Engine& engine, const PageRule& rule)
    : engine_(engine), rule_(rule), hp_(engine.model().hp) {
  check_pages(engine.pool().backend());
  engine.set_observer(this);
}

void PageAttention::score(const Chunk& chunk, Rows q, KvLayer kv, int kv_head, int block, PageTable& scores) const {
  const auto dim = static_cast<size_t>(kv.head_dim), group = scores.size() / static_cast<size_t>(kv.kv_heads);
  const size_t first_head = group * static_cast<size_t>(kv_head);
  const std::span<const float> queries(q.row(chunk.first_row) + first_head * dim, group * dim);
  const int first = block * kBlockTokens, end = std::min(chunk.context(), first + kBlockTokens);
  std::vector<float> keys, own(group);
  for (int begin = first; begin < end; begin += rule_.positions) {
    const int count = std::min(rule_.positions, end - begin);
    keys.resize(static_cast<size_t>(count) * dim);
    for (int i = 0; i < count; ++i) {
      read_kv_row(kv.row_layout(), kv.row(chunk.blocks_of(kv)[block], kv_head, begin - first + i),
                  keys.data() + static_cast<size_t>(i) * dim, nullptr);
    }
    page_scores(rule_.score, kv.head_dim, keys, queries, own);
    const int page = begin / rule_.positions;
    for (size_t h = 0; h < group; ++h) {
      scores[first_head + h][static_cast<size_t>(page)] = reference::capped(own[h], hp_.product_cap(kv.head_dim));
    }
  }
}

PageAttention::PageTable PageAttention::scores(const Chunk& chunk, Rows q, KvLayer kv) const {
  const int pages = page_count(rule_, chunk.context()), blocks = blocks_for(chunk.context());
  PageTable all(static_cast<size_t>(hp_.heads), std::vector<float>(static_cast<size_t>(pages)));
#pragma omp parallel for schedule(static)
  for (int task = 0; task < kv.kv_heads * blocks; ++task) score(chunk, q, kv, task / blocks, task % blocks, all);
  return all;
}

std::vector<std::vector<int32_t>> PageAttention::select(const Chunk& chunk, Rows q, KvLayer kv) const {
  const Plan plan{{chunk.roles.begin(), chunk.roles.end()}, chunk.policy};
  const int context = chunk.context(), units = scope_units(chunk.policy.scope, hp_.heads, hp_.kv_heads);
  const Policy policy = page_policy(chunk.policy, rule_, context, pages_for_bytes(engine_, plan, rule_, context).pages);
  const PageTable all = scores(chunk, q, kv);
  const auto heads = static_cast<size_t>(hp_.heads / units);
  const double scale = 1.0 / std::sqrt(static_cast<double>(kv.head_dim));
  std::vector<std::vector<int32_t>> sets(static_cast<size_t>(units));
  for (size_t unit = 0; unit < sets.size(); ++unit) {
    for (const int32_t page : reference::select_positions(std::span(all).subspan(unit * heads, heads), policy, scale)) {
      const int begin = page * rule_.positions, end = std::min(context, begin + rule_.positions);
      for (int position = begin; position < end; ++position) sets[unit].push_back(position);
    }
  }
  return sets;
}

bool PageAttention::attends(int layer, const Batch& batch, Rows q, KvLayer kv, Rows out, const Weight& sink_logits) {
  const auto reads = [&](const Chunk& chunk) { return reads_selected(chunk.role(layer)); };
  if (std::none_of(batch.chunks.begin(), batch.chunks.end(), reads)) return false;
  selected_.resize(std::max(selected_.size(), batch.chunks.size()));
  const std::vector<Role> sparse(static_cast<size_t>(hp_.layers), Role::Sparse);
  std::vector<Chunk> chunks(batch.chunks.begin(), batch.chunks.end());
  Selection selection;
  for (size_t c = 0; c < chunks.size(); ++c) {
    Chunk& chunk = chunks[c];
    if (!reads(chunk)) continue;
    if (chunk.role(layer) == Role::Scan) selected_[c] = select(chunk, q, kv);
    chunk.roles = sparse;
    chunk.policy.budget = chunk.context();  // room for any number of positions
    selection.row_units = std::max(selection.row_units, static_cast<int>(selected_[c].size()));
    selection.row_positions = std::max(selection.row_positions, selection.row_units * chunk.most_selected());
  }
  std::vector<int32_t> positions(chunks.size() * static_cast<size_t>(selection.row_positions));
  std::vector<int32_t> counts(chunks.size() * static_cast<size_t>(selection.row_units));
  selection.positions = positions.data();
  selection.counts = counts.data();
  for (size_t c = 0; c < chunks.size(); ++c) {
    if (!reads(batch.chunks[c])) continue;
    for (size_t unit = 0; unit < selected_[c].size(); ++unit) {
      const std::vector<int32_t>& set = selected_[c][unit];
      std::copy(set.begin(), set.end(), selection.unit(chunks[c], static_cast<int>(unit)));
      selection.count(chunks[c], static_cast<int>(unit)) = static_cast<int32_t>(set.size());
    }
  }
  const Batch own{batch.tokens, batch.positions, chunks, batch.logit_rows};
  engine_.pool().backend().attend(own, layer, q, kv, selection, out, sink_logits);
  return true;
}

}  // namespace tidal
