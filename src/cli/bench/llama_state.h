// The cache of one sequence as libllama saves it, taken apart so that a long cache can be made from a short one.
#pragma once

#include <llama.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace tidal {

/// The saved K and V rows of one sequence: for every layer first all rows of K, then all rows of V. Models with windows
/// have two caches, the second one of the layers with a window, which holds the last positions only. Hybrids have one,
/// of the layers that attend, and the state of the others.
class LlamaState {
 public:
  /// Saves sequence `seq` of a context that keeps V row by row (flash attention on). Throws Error when libllama writes
  /// anything else than this class knows.
  LlamaState(llama_context* context, llama_seq_id seq);

  /// Converts the rows to another type of element (f16, bf16, f32).
  void convert(ggml_type type);
  /// Makes sequence `seq` hold positions [0, cells), the saved rows over and over: every position has cells of its own,
  /// so that attention reads as much memory as after a real prefill; of a window's layers the positions that it needs.
  /// The state of recurrent layers is the saved one, whatever `cells`.
  /// `streams`: sequences of `context` when they do not share a cache, else 1. Throws Error when libllama refuses.
  void restore(llama_context* context, llama_seq_id seq, int cells, int streams) const;

 private:
  struct Part {
    int32_t type = 0;
    uint64_t row_bytes = 0;
    size_t offset = 0;  // of the first row in bytes_
  };

  struct Cache {
    uint32_t layers = 0;
    std::vector<llama_pos> positions;  // of the saved cells
    std::vector<Part> parts;           // K of every layer, then V of every layer
  };
  class Reader;

  Cache read_cache(Reader& in) const;
  void read_recurrent(Reader& in);
  /// The saved rows over and over for these positions.
  void write_cells(std::vector<std::byte>& out, const Cache& cache, const std::vector<llama_pos>& positions) const;

  uint32_t magic_ = 0;
  int window_ = 0;   // positions that layers with a window see; 0: there are none
  size_t axes_ = 0;  // bytes of a cell's further positions and token, where a rotation goes by several
  std::vector<Cache> caches_;
  std::vector<std::byte> bytes_;
  std::vector<std::byte> recurrent_;  // what follows its position
};

}  // namespace tidal
