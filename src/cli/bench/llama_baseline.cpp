#include "cli/bench/llama_baseline.h"

#include <algorithm>
#include <random>

#include "core/error.h"
#include "core/timer.h"

namespace tidal {
namespace {

constexpr int kBatchTokens = 512;  // llama-bench's n_ubatch
constexpr int kProbeDepth = 2048;
constexpr int kProbePrompt = 128;
constexpr int kProbeSteps = 8;

// One token of each of several sequences, or a run of one.
class Tokens {
 public:
  explicit Tokens(int capacity) : batch_(llama_batch_init(capacity, 0, 1)) {}
  Tokens(const Tokens&) = delete;
  Tokens& operator=(const Tokens&) = delete;
  ~Tokens() { llama_batch_free(batch_); }

  void clear() { batch_.n_tokens = 0; }
  void add(Token token, int position, llama_seq_id seq, bool logits) {
    const int i = batch_.n_tokens++;
    batch_.token[i] = token;
    batch_.pos[i] = position;
    batch_.n_seq_id[i] = 1;
    batch_.seq_id[i][0] = seq;
    batch_.logits[i] = logits;
  }
  void decode(llama_context* context) const {
    if (const int status = llama_decode(context, batch_); status != 0)
      fail("llama.cpp: llama_decode returned {}", status);
    llama_synchronize(context);
  }

 private:
  llama_batch batch_;
};

std::vector<Token> random_tokens(const llama_model* model, int count, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_int_distribution<Token> token(0, llama_vocab_n_tokens(llama_model_get_vocab(model)) - 1);
  std::vector<Token> tokens(count);
  for (Token& t : tokens) t = token(random);
  return tokens;
}

void run(llama_context* context, std::span<const Token> tokens, int position) {
  Tokens batch(kBatchTokens);
  for (size_t done = 0; done < tokens.size();) {
    const size_t count = std::min<size_t>(kBatchTokens, tokens.size() - done);
    batch.clear();
    for (size_t i = 0; i < count; ++i) {
      batch.add(tokens[done + i], position + static_cast<int>(done + i), 0, done + i + 1 == tokens.size());
    }
    batch.decode(context);
    done += count;
  }
}

void forget(llama_context* context, int sequence, int depth) {
  if (!llama_memory_seq_rm(llama_get_memory(context), sequence, depth, -1)) {
    fail("llama.cpp: a sequence cannot be cut back to {} positions", depth);
  }
}

}  // namespace

LlamaBaseline::LlamaBaseline(const BaselineOptions& options) : options_(options) {
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  llama_backend_init();
  llama_model_params params = llama_model_default_params();
  params.n_gpu_layers = 0;
  model_.reset(llama_model_load_from_file(options.path.c_str(), params), llama_model_free);
  if (!model_) fail("{}: llama.cpp cannot load this model", options.path);
  choose_types();
  source_ = make_context(prefill_type_, options.random ? kBatchTokens : options.context, 1);
}

LlamaBaseline::Context LlamaBaseline::make_context(ggml_type kv_type, int positions, int sequences) const {
  // libllama rounds every sequence's cache up to 256 cells.
  const int cells = (positions + 255) / 256 * 256;
  llama_context_params params = llama_context_default_params();
  params.n_ctx = static_cast<uint32_t>(cells) * sequences;
  params.n_batch = params.n_ubatch = kBatchTokens;
  params.n_seq_max = sequences;
  params.n_threads = params.n_threads_batch = options_.threads;
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  params.type_k = params.type_v = kv_type;
  // Layers with a window keep their window only, as llama.cpp's programs do: with libllama's own default, every
  // position, the baseline would hold more memory than a user's llama.cpp.
  params.swa_full = false;
  if (options_.stopped) {
    params.abort_callback = [](void* stopped) { return (*static_cast<std::function<bool()>*>(stopped))(); };
    params.abort_callback_data = const_cast<std::function<bool()>*>(&options_.stopped);
  }
  params.kv_unified = sequences == 1;  // sequences of their own are faster apart
  Context context(llama_init_from_model(model_.get(), params), llama_free);
  if (!context) {
    fail("llama.cpp: cannot make a context of {} sequences with {} positions each", sequences, cells);
  }
  return context;
}

void LlamaBaseline::choose_types() {
  const ggml_type types[2] = {GGML_TYPE_BF16, GGML_TYPE_F16};
  double prefill_time[2], decode_time[2];
  const std::vector<Token> tokens = random_tokens(model_.get(), kProbePrompt, 1);
  for (int i = 0; i < 2; ++i) {
    context_ = make_context(types[i], kProbeDepth + kProbePrompt, 1);
    run(context_.get(), tokens, 0);
    batch_ = 1;
    depth_ = kProbeDepth;
    fill(LlamaState(context_.get(), 0));
    // The best of several, as another program may be busy in between.
    prefill_time[i] = std::min({prefill(tokens), prefill(tokens), prefill(tokens)});
    const std::vector<double> steps = decode(kProbeSteps, 1);
    decode_time[i] = *std::min_element(steps.begin(), steps.end());
    context_.reset();
  }
  prefill_type_ = types[prefill_time[1] < prefill_time[0]];
  decode_type_ = types[decode_time[1] < decode_time[0]];
}

void LlamaBaseline::extend_source(std::span<const Token> tokens) {
  // Depths come in ascending order: what an earlier one prefilled is kept.
  size_t kept = 0;
  while (kept < cached_.size() && kept < tokens.size() && cached_[kept] == tokens[kept]) ++kept;
  // What recurrent layers have taken in cannot be taken out.
  if (kept < cached_.size() && llama_model_is_hybrid(model_.get())) kept = 0;
  forget(source_.get(), 0, static_cast<int>(kept));
  const Timer timer;
  run(source_.get(), tokens.subspan(kept), static_cast<int>(kept));
  prepared_seconds_ = timer.seconds();
  cached_.assign(tokens.begin(), tokens.end());
}

void LlamaBaseline::prepare(Test test, std::span<const Token> tokens, int batch) {
  context_.reset();  // before another one is made: two long caches need not be held at once
  batch_ = batch;
  depth_ = static_cast<int>(tokens.size());
  extend_source(tokens.first(options_.random ? std::min(depth_, kBatchTokens) : depth_));
  context_ = make_context(type(test), options_.context, batch);
  recurrent_.clear();
  if (depth_ == 0) return;
  LlamaState state(source_.get(), 0);
  if (type(test) != prefill_type_) state.convert(type(test));
  fill(state);
}

void LlamaBaseline::fill(const LlamaState& state) {
  constexpr llama_state_seq_flags kRecurrent = LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY;
  llama_context* context = context_.get();
  for (int s = 0; s < batch_; ++s) state.restore(context, s, depth_, batch_);
  if (!llama_model_is_hybrid(model_.get())) return;
  recurrent_.resize(llama_state_seq_get_size_ext(context, 0, kRecurrent));
  if (llama_state_seq_get_data_ext(context, recurrent_.data(), recurrent_.size(), 0, kRecurrent) != recurrent_.size()) {
    fail("llama.cpp: could not save the state of recurrent layers");
  }
}

void LlamaBaseline::go_back() {
  constexpr llama_state_seq_flags kRecurrent = LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY;
  llama_context* context = context_.get();
  for (int s = 0; s < batch_; ++s) {
    // All sequences have the same. First: with a later one libllama refuses to cut the cache.
    if (!recurrent_.empty() &&
        llama_state_seq_set_data_ext(context, recurrent_.data(), recurrent_.size(), s, kRecurrent) == 0) {
      fail("llama.cpp: could not put the state of recurrent layers back");
    }
    forget(context, s, depth_);
  }
}

double LlamaBaseline::prefill(std::span<const Token> tokens) {
  const Timer timer;
  run(context_.get(), tokens, depth_);
  const double seconds = timer.seconds();
  go_back();
  return seconds;
}

std::vector<double> LlamaBaseline::decode(int steps, uint32_t seed) {
  const std::vector<Token> tokens = random_tokens(model_.get(), steps * batch_, seed);
  Tokens batch(batch_);
  std::vector<double> times;
  for (int step = 0; step < steps; ++step) {
    const Timer timer;
    batch.clear();
    for (int s = 0; s < batch_; ++s) batch.add(tokens[step * batch_ + s], depth_ + step, s, true);
    batch.decode(context_.get());
    times.push_back(timer.seconds());
  }
  go_back();
  return times;
}

}  // namespace tidal
