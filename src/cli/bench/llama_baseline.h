// llama.cpp on the same model, in the same process: what `tidal bench` compares itself with.
#pragma once

#include <ggml.h>
#include <llama.h>

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/hyperparameters.h"
#include "cli/bench/llama_state.h"

namespace tidal {

struct BaselineOptions {
  std::string path;  ///< GGUF file
  int threads = 1;
  int context = 0;      ///< most positions of one sequence
  bool random = false;  ///< fill caches by repeating the cells of a prefill of 512, which makes long ones in no time
  std::function<bool()> stopped;  ///< asked often; true makes the call in progress throw Error
};

/// libllama with flash attention on, n_batch and n_ubatch 512, swa_full off, weights repacked as llama.cpp does by
/// default. Times are seconds. Call prepare() first.
///
/// The cache is bf16 as in tidal, unless llama.cpp is faster with f16: the constructor measures both, for prefill and
/// for decoding, so that the baseline is never slowed down by our choice of type.
class LlamaBaseline {
 public:
  enum class Test { Prefill, Decode };

  /// Loads the model; libllama's log is silenced for the whole process. Throws Error when it cannot be loaded.
  explicit LlamaBaseline(const BaselineOptions& options);

  /// Element type of the cache in a test: "bf16" or "f16".
  std::string kv_type(Test test) const { return ggml_type_name(type(test)); }

  /// Makes `batch` sequences hold tokens.size() positions each, in memory of their own. Cheaper when the tokens begin
  /// with those of the last call.
  void prepare(Test test, std::span<const Token> tokens, int batch);
  /// Seconds that the last prepare() spent on tokens that were not in its cache yet.
  double prepared_seconds() const { return prepared_seconds_; }
  /// Seconds to prefill `tokens` into sequence 0 behind the prepared positions; forgets them again.
  double prefill(std::span<const Token> tokens);
  /// Seconds of each of `steps` decode steps of all sequences with random tokens; forgets them again.
  std::vector<double> decode(int steps, uint32_t seed);

 private:
  using Context = std::shared_ptr<llama_context>;

  ggml_type type(Test test) const { return test == Test::Prefill ? prefill_type_ : decode_type_; }
  Context make_context(ggml_type kv_type, int positions, int sequences) const;
  void extend_source(std::span<const Token> tokens);
  /// Fills the test's context with `state`, up to depth_.
  void fill(const LlamaState& state);
  /// Forgets in the test's context what is behind depth_.
  void go_back();
  void choose_types();

  BaselineOptions options_;
  std::shared_ptr<llama_model> model_;
  ggml_type prefill_type_ = GGML_TYPE_BF16;
  ggml_type decode_type_ = GGML_TYPE_BF16;
  Context source_;                  // one sequence of the prefill's type, from which all caches are made
  std::vector<Token> cached_;       // content of source_
  Context context_;                 // of the test, as prepare() left it
  std::vector<uint8_t> recurrent_;  // of hybrids: the state of each of its sequences at depth_
  double prepared_seconds_ = 0;
  int batch_ = 1;
  int depth_ = 0;
};

}  // namespace tidal
