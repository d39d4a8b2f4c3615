#include "backend/cpu/kv_requests.h"

#include <sys/resource.h>

#include <algorithm>

#include "backend/kv_file.h"

namespace tidal {
namespace {

/// How often this process has found a page of a file not in memory.
int64_t page_faults() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_majflt;
}

}  // namespace

void KvRequests::begin(const KvLayer& kv) {
  kv_ = kv;
  if (!kv.file) return;
  faults_ = page_faults();
  missed_ = kv.file->missed();
}

void KvRequests::end() {
  constexpr int kLayers = 256;  // some tokens' worth: asking takes a part of a step where it is not needed
  if (!kv_.file) return;
  if (kv_.file->missed() != missed_ || page_faults() != faults_) {
    left_ = kLayers;
  } else if (left_ > 0) {
    --left_;
  }
}

void KvRequests::ask_for(const Chunk& chunk, int kv_head, std::span<const int32_t> positions) const {
  const std::span<const BlockId> blocks = chunk.blocks_of(kv_);
  const auto bytes = static_cast<size_t>(kv_.row_bytes());
  const size_t page = kv_.file->page();
  size_t asked = 0;  // behind the last page
  for (const int32_t position : positions) {
    const std::byte* row = kv_.row(blocks[position / kBlockTokens], kv_head, position % kBlockTokens);
    const auto begin = reinterpret_cast<size_t>(row), end = begin + bytes;
    if (end <= asked && begin + page >= asked) continue;
    kv_.file->ask_for(row, bytes);
    asked = (end + page - 1) / page * page;
  }
}

void KvRequests::ask_for(const Chunk& chunk, int kv_head, int begin, int end) const {
  const std::span<const BlockId> blocks = chunk.blocks_of(kv_);
  end = std::min(end, chunk.context());
  for (int block = begin / kBlockTokens; block < blocks_for(end); ++block) {
    kv_.file->ask_for(kv_.tile(blocks[block], kv_head), static_cast<size_t>(kv_.tile_bytes()));
  }
}

}  // namespace tidal
