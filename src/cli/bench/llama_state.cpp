#include "cli/bench/llama_state.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <span>
#include <utility>

#include "core/error.h"

namespace tidal {

// What libllama 0.3.36 writes for one sequence: u32 magic, i32 sequence, and then of every cache (llama_kv_cache::
// state_write)
//   u32 streams
//   for every stream: u32 cells, and if there are any
//     cells times: i32 position, u32 1, where positions have several axes two more of them and i32 token, i32 sequence
//     u32 V transposed, u32 layers
//     layers times: i32 type of K, u64 bytes of a row, the rows; then the same for V
// and of recurrent layers (llama_memory_recurrent::state_write)
//   u32 cells, always 1, and of it: i32 position, u32 0, then what is not looked at here
class LlamaState::Reader {
 public:
  explicit Reader(const std::vector<std::byte>& bytes) : bytes_(bytes) {}

  template <typename T>
  T read() {
    T value;
    skip(sizeof value);
    std::memcpy(&value, bytes_.data() + at_ - sizeof value, sizeof value);
    return value;
  }
  void skip(size_t count) {
    if (count > bytes_.size() - at_) fail("llama.cpp: its saved cache ends too early for the format this build knows");
    at_ += count;
  }
  std::span<const std::byte> rest() {
    const size_t first = std::exchange(at_, bytes_.size());
    return std::span(bytes_).subspan(first);
  }
  size_t at() const { return at_; }
  bool at_end() const { return at_ == bytes_.size(); }

 private:
  const std::vector<std::byte>& bytes_;
  size_t at_ = 0;
};

namespace {

constexpr size_t kAxes = 2 * sizeof(llama_pos) + sizeof(llama_token);

size_t bytes_of_axes(const llama_model* model) {
  const llama_rope_type type = llama_model_rope_type(model);
  return type == LLAMA_ROPE_TYPE_MROPE || type == LLAMA_ROPE_TYPE_IMROPE ? kAxes : 0;
}

void put(std::vector<std::byte>& out, const void* data, size_t count) {
  const auto* bytes = static_cast<const std::byte*>(data);
  out.insert(out.end(), bytes, bytes + count);
}

template <typename T>
void put(std::vector<std::byte>& out, T value) {
  put(out, &value, sizeof value);
}

}  // namespace

LlamaState::LlamaState(llama_context* context, llama_seq_id seq)
    : window_(llama_model_n_swa(llama_get_model(context))),
      axes_(bytes_of_axes(llama_get_model(context))),
      bytes_(llama_state_seq_get_size(context, seq)) {
  auto* data = reinterpret_cast<uint8_t*>(bytes_.data());
  if (bytes_.empty() || llama_state_seq_get_data(context, data, bytes_.size(), seq) != bytes_.size()) {
    fail("llama.cpp: could not save the cache of a sequence");
  }
  Reader in(bytes_);
  magic_ = in.read<uint32_t>();
  in.read<llama_seq_id>();
  if (llama_model_is_hybrid(llama_get_model(context))) {
    caches_.push_back(read_cache(in));
    read_recurrent(in);
  }
  while (!in.at_end()) caches_.push_back(read_cache(in));
  if (caches_.empty() || caches_.size() > (window_ > 0 ? 2 : 1)) {
    fail("llama.cpp: its saved cache has a layout that this build does not know");
  }
}

void LlamaState::read_recurrent(Reader& in) {
  const auto cells = in.read<uint32_t>();
  in.read<llama_pos>();
  if (cells != 1) fail("llama.cpp: its saved state of recurrent layers has a layout that this build does not know");
  const std::span<const std::byte> rest = in.rest();
  recurrent_.assign(rest.begin(), rest.end());
}

LlamaState::Cache LlamaState::read_cache(Reader& in) const {
  Cache cache;
  const auto streams = in.read<uint32_t>();
  for (uint32_t s = 0; s < streams; ++s) {
    const auto cells = in.read<uint32_t>();
    if (cells == 0) continue;
    if (!cache.positions.empty()) {
      fail("llama.cpp: a sequence is spread over several caches, which this build does not know");
    }
    for (uint32_t i = 0; i < cells; ++i) {
      cache.positions.push_back(in.read<llama_pos>());
      in.skip(sizeof(uint32_t) + axes_ + sizeof(llama_seq_id));
    }
    const auto transposed = in.read<uint32_t>();
    cache.layers = in.read<uint32_t>();
    if (transposed != 0 || cache.layers > 4096) {
      fail("llama.cpp: its saved cache has a layout that this build does not know");
    }
    for (uint32_t i = 0; i < 2 * cache.layers; ++i) {
      Part part;
      part.type = in.read<int32_t>();
      part.row_bytes = in.read<uint64_t>();
      part.offset = in.at();
      if (part.row_bytes > (1 << 30)) fail("llama.cpp: its saved cache has a layout that this build does not know");
      in.skip(cells * part.row_bytes);
      cache.parts.push_back(part);
    }
  }
  if (cache.positions.empty()) fail("llama.cpp: its saved cache has a layout that this build does not know");
  return cache;
}

void LlamaState::convert(ggml_type type) {
  std::vector<std::byte> converted;
  for (Cache& cache : caches_) {
    for (Part& part : cache.parts) {
      const auto from = static_cast<ggml_type>(part.type);
      const auto count = static_cast<int64_t>(cache.positions.size() * part.row_bytes / ggml_type_size(from));
      std::vector<float> values(count);
      const std::byte* rows = bytes_.data() + part.offset;
      if (from == GGML_TYPE_F32) {
        std::memcpy(values.data(), rows, count * sizeof(float));
      } else {
        ggml_get_type_traits(from)->to_float(rows, values.data(), count);
      }
      part.type = type;
      part.row_bytes = part.row_bytes / ggml_type_size(from) * ggml_type_size(type);
      part.offset = converted.size();
      converted.resize(converted.size() + count * ggml_type_size(type));
      ggml_quantize_chunk(type, values.data(), converted.data() + part.offset, 0, 1, count, nullptr);
    }
  }
  bytes_ = std::move(converted);
}

void LlamaState::write_cells(std::vector<std::byte>& out, const Cache& cache,
                             const std::vector<llama_pos>& positions) const {
  put(out, static_cast<uint32_t>(positions.size()));
  for (const llama_pos position : positions) {
    put(out, position);
    put(out, uint32_t{1});
    if (axes_ > 0) {  // as of text, all the same
      for (int axis = 0; axis < 2; ++axis) put(out, position);
      put(out, llama_token{0});
    }
    put(out, llama_seq_id{0});
  }
  put(out, uint32_t{0});
  put(out, cache.layers);
  const size_t saved = cache.positions.size();
  for (const Part& part : cache.parts) {
    put(out, part.type);
    put(out, part.row_bytes);
    for (size_t done = 0; done < positions.size(); done += saved) {
      put(out, bytes_.data() + part.offset, std::min(saved, positions.size() - done) * part.row_bytes);
    }
  }
}

void LlamaState::restore(llama_context* context, llama_seq_id seq, int cells, int streams) const {
  std::vector<std::byte> out;
  put(out, magic_);
  put(out, llama_seq_id{0});
  for (const Cache& cache : caches_) {
    const bool windowed = &cache != caches_.data();
    std::vector<llama_pos> positions = cache.positions;
    const auto needed = static_cast<size_t>(windowed ? std::min(window_, cells) : cells);
    if (!windowed || positions.size() < needed) {
      positions.resize(needed);
      std::iota(positions.begin(), positions.end(), static_cast<llama_pos>(cells) - static_cast<llama_pos>(needed));
    } else {
      // Its cells are in any order: as they are, but up to the new end.
      const llama_pos last = *std::max_element(positions.begin(), positions.end());
      for (llama_pos& position : positions) position += cells - 1 - last;
    }
    put(out, static_cast<uint32_t>(streams));
    write_cells(out, cache, positions);
    for (int s = 1; s < streams; ++s) put(out, uint32_t{0});
  }
  if (!recurrent_.empty()) {
    put(out, uint32_t{1});
    put(out, static_cast<llama_pos>(cells - 1));
    put(out, recurrent_.data(), recurrent_.size());
  }
  const auto* data = reinterpret_cast<const uint8_t*>(out.data());
  if (llama_state_seq_set_data(context, data, out.size(), seq) == 0) {
    fail("llama.cpp: could not fill the cache of sequence {} with {} positions", seq, cells);
  }
}

}  // namespace tidal
