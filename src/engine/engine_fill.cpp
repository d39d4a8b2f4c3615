// Caches of any content, for benchmarks.
#include <algorithm>
#include <map>

#include "core/error.h"
#include "engine/engine.h"

namespace tidal {
namespace {

constexpr size_t kNoise = size_t{1} << 24;  // elements that are made at most
constexpr size_t kNoiseStep = 64;           // between places in them: copies run best from whole cache lines

/// Random K and V in the backend's memory. Numbers for a long context would take the host minutes to make: each block
/// is cut out of one stretch of noise at another place, which the backend's own memory does as fast as it copies.
class Noise {
 public:
  /// `wanted`: elements of all blocks; `largest`: of the largest block of a layer.
  Noise(Backend& backend, KvType type, size_t wanted, size_t largest, uint64_t seed)
      : backend_(backend), type_(type), enough_(wanted <= std::max(largest, kNoise)), state_(seed * 2 + 1) {
    elements_.resize(std::min(wanted, std::max(largest, kNoise)));
    for (float& value : elements_) {
      value = static_cast<float>(static_cast<int32_t>(random())) * 0x1p-31f;  // uniform in [-1, 1)
    }
  }

  /// Fills a block of all heads of a layer.
  void fill(const KvLayer& layer, BlockId block) {
    const size_t row = size_t{2} * layer.head_dim, count = row * kBlockTokens * layer.kv_heads;
    const size_t at = enough_ ? next_ : random() % ((elements_.size() - count) / kNoiseStep + 1) * kNoiseStep;
    // Where blocks are cut out of numbers, anywhere; where rows have more in them, at one.
    const size_t from = type_ == KvType::Bf16 ? sizeof(Bf16) * at : at / row * static_cast<size_t>(layer.row_bytes());
    backend_.copy(layer.tile(block, 0), rows_of(layer.head_dim).as<std::byte>() + from,
                  static_cast<size_t>(layer.tile_bytes()) * layer.kv_heads);
    next_ += count;
  }

 private:
  uint32_t random() {
    state_ = state_ * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<uint32_t>(state_ >> 32);
  }
  /// The elements as rows of heads of this size.
  const Buffer& rows_of(int head_dim) {
    Buffer& memory = rows_[head_dim];
    if (memory.bytes() > 0) return memory;
    const KvRowLayout layout{type_, head_dim};
    const size_t row = size_t{2} * head_dim, rows = elements_.size() / row;
    std::vector<std::byte> host(rows * static_cast<size_t>(layout.bytes()));
    for (size_t r = 0; r < rows; ++r) {
      const float* const key = elements_.data() + r * row;
      write_kv_row(layout, key, key + head_dim, host.data() + r * static_cast<size_t>(layout.bytes()));
    }
    memory = backend_.allocate(host.size(), "random numbers");
    backend_.write(memory.as<std::byte>(), host.data(), host.size());
    return memory;
  }

  Backend& backend_;
  KvType type_;
  bool enough_;  // for every block to have its own
  uint64_t state_;
  std::vector<float> elements_;
  std::map<int, Buffer> rows_;
  size_t next_ = 0;
};

}  // namespace

void Engine::fill_random(Sequence& sequence, int count, uint64_t seed) {
  const Hyperparameters& hp = model_.hp;
  if (count < 0 || sequence.length() + int64_t{count} > options_.context) {
    fail("engine: cannot fill {} positions in a context of {} that holds {}", count, options_.context,
         sequence.length());
  }
  sequence.reserve(count);
  const int end = sequence.length() + count;
  const int first_seen = std::max(sequence.length(), end - hp.largest_window() - SequenceWindows::kSlack);
  if (count > 0) sequence.windows().reserve(first_seen, end);
  const auto first_block = static_cast<size_t>(sequence.length() / kBlockTokens);
  pool_->prepare(sequence.blocks(), first_block);
  std::vector<BlockId> blocks;
  for (const BlockId block : sequence.blocks().subspan(first_block)) blocks.push_back(pool_->slot(block));
  const std::span<const BlockId> windows =
      pool_->windows() && count > 0
          ? sequence.windows().blocks().subspan(static_cast<size_t>(first_seen / kBlockTokens))
          : std::span<const BlockId>();
  const size_t token = static_cast<size_t>(hp.kv_bytes_per_token()) / sizeof(Bf16);  // elements
  Noise noise(backend_, options_.kv_type, token * kBlockTokens * blocks.size(),
              size_t{2} * kBlockTokens * static_cast<size_t>(hp.kv_width()), seed);
  for (int l = 0; l < hp.layers; ++l) {
    if (!hp.has_kv(l)) continue;
    const KvLayer& layer = pool_->layers()[static_cast<size_t>(l)];
    for (const BlockId to : layer.windowed ? windows : std::span<const BlockId>(blocks)) noise.fill(layer, to);
    if (!layer.windowed) backend_.sketch(layer, blocks);
  }
  const std::vector<Token> tokens(count, 0);
  sequence.append(tokens, true);
  if (pool_->states()) {  // one of any content
    sequence.states().reserve();
    sequence.states().advance(sequence.length());
    sequence.states().save();  // to come back to
  }
  sequence.windows().save(sequence.length());
  sequence.windows().advance(sequence.length());
}

}  // namespace tidal
