#include "cli/bench/llama_state.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"

namespace tidal {
namespace {

// What libllama 0.3.36 writes for one sequence (llama_kv_cache::state_write):
//   u32 magic, i32 sequence, u32 streams
//   for every stream: u32 cells, and if there are any
//     cells times: i32 position, u32 1, i32 sequence
//     u32 V transposed, u32 layers
//     layers times: i32 type of K, u64 bytes of a row, the rows; then the same for V
class Reader {
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
  size_t at() const { return at_; }

 private:
  const std::vector<std::byte>& bytes_;
  size_t at_ = 0;
};

void put(std::vector<std::byte>& out, const void* data, size_t count) {
  const auto* bytes = static_cast<const std::byte*>(data);
  out.insert(out.end(), bytes, bytes + count);
}

template <typename T>
void put(std::vector<std::byte>& out, T value) {
  put(out, &value, sizeof value);
}

}  // namespace

LlamaState::LlamaState(llama_context* context, llama_seq_id seq) {
  bytes_.resize(llama_state_seq_get_size(context, seq));
  auto* data = reinterpret_cast<uint8_t*>(bytes_.data());
  if (bytes_.empty() || llama_state_seq_get_data(context, data, bytes_.size(), seq) != bytes_.size()) {
    fail("llama.cpp: could not save the cache of a sequence");
  }
  Reader in(bytes_);
  magic_ = in.read<uint32_t>();
  in.read<llama_seq_id>();
  const auto streams = in.read<uint32_t>();
  for (uint32_t s = 0; s < streams; ++s) {
    const auto cells = in.read<uint32_t>();
    if (cells == 0) continue;
    if (cells_ != 0) fail("llama.cpp: a sequence is spread over several caches, which this build does not know");
    cells_ = static_cast<int>(cells);
    in.skip(size_t{cells} * (sizeof(llama_pos) + sizeof(uint32_t) + sizeof(llama_seq_id)));
    const auto transposed = in.read<uint32_t>();
    layers_ = in.read<uint32_t>();
    if (transposed != 0 || layers_ > 4096)
      fail("llama.cpp: its saved cache has a layout that this build does not know");
    for (uint32_t i = 0; i < 2 * layers_; ++i) {
      Part part;
      part.type = in.read<int32_t>();
      part.row_bytes = in.read<uint64_t>();
      part.offset = in.at();
      if (part.row_bytes > bytes_.size()) fail("llama.cpp: its saved cache has a layout that this build does not know");
      in.skip(cells * part.row_bytes);
      parts_.push_back(part);
    }
  }
  if (cells_ == 0 || in.at() != bytes_.size()) {
    fail("llama.cpp: its saved cache has a layout that this build does not know");
  }
}

void LlamaState::convert(ggml_type type) {
  std::vector<std::byte> converted;
  for (Part& part : parts_) {
    const auto from = static_cast<ggml_type>(part.type);
    const auto count = static_cast<int64_t>(cells_ * part.row_bytes / ggml_type_size(from));
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
  bytes_ = std::move(converted);
}

void LlamaState::write_cells(std::vector<std::byte>& out, int cells) const {
  put(out, static_cast<uint32_t>(cells));
  for (int i = 0; i < cells; ++i) {
    put(out, static_cast<llama_pos>(i));
    put(out, uint32_t{1});
    put(out, llama_seq_id{0});
  }
  put(out, uint32_t{0});
  put(out, layers_);
  for (const Part& part : parts_) {
    put(out, part.type);
    put(out, part.row_bytes);
    for (int done = 0; done < cells; done += cells_) {
      const int count = std::min(cells_, cells - done);
      put(out, bytes_.data() + part.offset, count * part.row_bytes);
    }
  }
}

void LlamaState::restore(llama_context* context, llama_seq_id seq, int cells, int streams) const {
  uint64_t row = 0;
  for (const Part& part : parts_) row += part.row_bytes;
  std::vector<std::byte> out;
  out.reserve(static_cast<size_t>(cells) * (row + 16) + parts_.size() * 16 + 256);
  put(out, magic_);
  put(out, llama_seq_id{0});
  put(out, static_cast<uint32_t>(streams));
  write_cells(out, cells);
  for (int s = 1; s < streams; ++s) put(out, uint32_t{0});
  const auto* data = reinterpret_cast<const uint8_t*>(out.data());
  if (llama_state_seq_set_data(context, data, out.size(), seq) == 0) {
    fail("llama.cpp: could not fill the cache of sequence {} with {} positions", seq, cells);
  }
}

}  // namespace tidal
