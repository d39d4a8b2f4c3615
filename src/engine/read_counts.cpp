#include "engine/read_counts.h"

#include <algorithm>

#include "core/error.h"
#include "engine/read_back.h"

namespace tidal {
void ReadCounter::add(const Sequence& sequence) {
  if (watched_ == entries_.size()) entries_.emplace_back();
  Watched& watched = entries_[watched_++];
  watched.sequence = &sequence;
  watched.reads = {.position = sequence.length()};
  watched.layers = 0;
  watched.selected.clear();
  watched.counts.assign(static_cast<size_t>(sequence.length()) + 1, 0);
}

void ReadCounter::add_up(Watched& watched) {
  for (const std::vector<int32_t>& set : watched.selected) {
    for (const int32_t position : set) watched.counts[position] += watched.layers;
  }
  watched.reads.sets += watched.layers * static_cast<int>(watched.selected.size());
  watched.layers = 0;
}

void ReadCounter::attended(int layer, const Batch& batch, Rows /*q*/, KvLayer /*kv*/, const Selection& selection) {
  for (const Chunk& chunk : batch.chunks) {
    if (!chunk.sparse()) continue;
    const auto end = entries_.begin() + static_cast<ptrdiff_t>(watched_);
    const auto watched =
        std::find_if(entries_.begin(), end, [&](const Watched& other) { return other.sequence == chunk.sequence; });
    if (watched == end) continue;
    const Role role = chunk.role(layer);
    if (selects(role)) {
      add_up(*watched);
      watched->selected = read_back(engine_.pool().backend(), engine_.model().hp, chunk, selection);
      const bool scan = role == Role::Scan;
      const Reserved reserved = reserved_positions(scan ? scan_policy(chunk.policy, chunk.context()) : chunk.policy);
      watched->reads.sinks = reserved.sinks;
      watched->reads.recent = reserved.recent;
    }
    if (reads_selected(role)) ++watched->layers;
  }
}

const StepReads& ReadCounter::reads(const Sequence& sequence) {
  const auto end = entries_.begin() + static_cast<ptrdiff_t>(watched_);
  const auto watched =
      std::find_if(entries_.begin(), end, [&](const Watched& other) { return other.sequence == &sequence; });
  if (watched == end) fail("read counts: nothing was counted for this sequence");
  add_up(*watched);
  StepReads& reads = watched->reads;
  for (size_t p = 0; p < watched->counts.size(); ++p) {
    if (watched->counts[p] > 0) reads.positions.push_back({static_cast<int32_t>(p), watched->counts[p]});
  }
  return reads;
}

}  // namespace tidal
