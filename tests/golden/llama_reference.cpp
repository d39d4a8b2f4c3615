#include "golden/llama_reference.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <stdexcept>

namespace tidal::golden {

LlamaReference::LlamaReference(const std::string& path, int context, int threads) {
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  llama_backend_init();
  model_ = {llama_model_load_from_file(path.c_str(), llama_model_default_params()), llama_model_free};
  if (!model_) throw std::runtime_error(path + ": llama.cpp cannot load it");
  llama_context_params params = llama_context_default_params();
  params.n_ctx = static_cast<uint32_t>(context);
  params.n_batch = params.n_ubatch = 512;
  params.n_threads = params.n_threads_batch = threads;
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  params.type_k = params.type_v = GGML_TYPE_F32;
  // Layers with a window keep their window only, as llama.cpp's programs do; libllama's own default keeps every
  // position.
  params.swa_full = false;
  context_ = {llama_init_from_model(model_.get(), params), llama_free};
  if (!context_) throw std::runtime_error(path + ": llama.cpp cannot make a context");
}

std::vector<Token> LlamaReference::tokens(const std::string& text) const {
  const llama_vocab* vocab = llama_model_get_vocab(model_.get());
  std::vector<Token> result(text.size() + 8);
  const int count = llama_tokenize(vocab, text.data(), static_cast<int>(text.size()), result.data(),
                                   static_cast<int>(result.size()), true, false);
  result.resize(static_cast<size_t>(std::max(count, 0)));
  return result;
}

int LlamaReference::vocab() const { return llama_vocab_n_tokens(llama_model_get_vocab(model_.get())); }

std::vector<float> LlamaReference::logits(std::span<const Token> tokens, size_t from) {
  llama_memory_clear(llama_get_memory(context_.get()), true);
  const auto width = static_cast<size_t>(vocab());
  std::vector<float> result((tokens.size() - from) * width);
  constexpr size_t kBatch = 512;
  llama_batch batch = llama_batch_init(kBatch, 0, 1);
  for (size_t first = 0; first < tokens.size(); first += kBatch) {
    batch.n_tokens = static_cast<int>(std::min(kBatch, tokens.size() - first));
    for (int i = 0; i < batch.n_tokens; ++i) {
      batch.token[i] = tokens[first + i];
      batch.pos[i] = static_cast<int>(first) + i;
      batch.n_seq_id[i] = 1;
      batch.seq_id[i][0] = 0;
      batch.logits[i] = first + i >= from;
    }
    if (llama_decode(context_.get(), batch) != 0) throw std::runtime_error("llama_decode failed");
    for (int i = 0; i < batch.n_tokens; ++i) {
      if (!batch.logits[i]) continue;
      std::copy_n(llama_get_logits_ith(context_.get(), i), width, result.begin() + (first + i - from) * width);
    }
  }
  llama_batch_free(batch);
  return result;
}

std::vector<Token> LlamaReference::greedy(std::span<const Token> prompt, int count) {
  llama_memory_clear(llama_get_memory(context_.get()), true);
  std::vector<Token> all(prompt.begin(), prompt.end());
  std::vector<Token> result;
  size_t done = 0;
  while (static_cast<int>(result.size()) < count) {
    while (done < all.size()) {
      const size_t count = std::min<size_t>(all.size() - done, llama_n_batch(context_.get()));
      if (llama_decode(context_.get(), llama_batch_get_one(all.data() + done, static_cast<int>(count))) != 0) {
        throw std::runtime_error("llama_decode failed");
      }
      done += count;
    }
    const float* logits = llama_get_logits_ith(context_.get(), -1);
    result.push_back(static_cast<Token>(std::max_element(logits, logits + vocab()) - logits));
    all.push_back(result.back());
  }
  return result;
}

std::string models_folder() {
  const char* folder = std::getenv("TIDAL_MODELS");
  return folder ? folder : TIDAL_SOURCE_DIR "/models";
}

std::string kjv_text() {
  std::ifstream file(models_folder() + "/kjv.txt");
  return {std::istreambuf_iterator<char>(file), {}};
}

double deviation(std::span<const float> a, std::span<const float> b) {
  if (a.size() != b.size()) throw std::logic_error("logits of different sizes");
  double squares = 0;
  for (size_t i = 0; i < a.size(); ++i) squares += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(squares / static_cast<double>(a.size()));
}

}  // namespace tidal::golden
