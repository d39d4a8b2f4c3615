#include "golden/long_text.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "golden/llama_reference.h"

namespace tidal::golden {

std::optional<LongText> LongText::open(const std::string& model, int threads, const std::string& backend) {
  const std::string path = models_folder() + "/" + model + ".gguf", kjv = kjv_text();
  if (!std::filesystem::exists(path) || kjv.empty()) return std::nullopt;
  LongText text;
  text.backend_ = make_backend(backend, threads);
  text.model_ = std::make_unique<Model>(load_model(path, *text.backend_));
  text.tokenizer_ = std::make_unique<Tokenizer>(path);
  text.tokens_ = text.tokenizer_->encode(kjv, true, false);
  return text;
}

std::string pass_key(int number) { return std::to_string(10000 + (number * 73471 + 31415) % 90000); }

std::string pass_key_sentence(const std::string& key) {
  return "\nThe pass key is " + key + ". Remember it. " + key + " is the pass key.\n";
}

std::string pass_key_question() { return "\nWhat is the pass key? The pass key is"; }

bool finds_pass_key(Engine& engine, const LongText& text, const Sequence& document, const std::string& key,
                    Question how) {
  Sequence sequence = document.fork();
  const std::vector<Token> question = text.encode(pass_key_question());
  std::span<const float> logits;
  if (how == Question::Dense) {
    logits = engine.prefill(sequence, question);
  } else {
    for (const Token token : question) logits = engine.decode(sequence, token);
  }
  std::string answer;
  constexpr int kMost = 8;  // a token a digit, and a space before them
  for (int i = 0; i < kMost; ++i) {
    const Token token = argmax(logits);
    answer += text.tokenizer().piece(token);
    logits = engine.decode(sequence, token);
  }
  const size_t start = answer.find_first_not_of(' ');
  return start != std::string::npos && answer.compare(start, key.size(), key) == 0;
}

Token argmax(std::span<const float> logits) {
  return static_cast<Token>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

void log_softmax(std::vector<float>& logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - top);
  const double shift = top + std::log(sum);
  for (float& logit : logits) logit = static_cast<float>(logit - shift);
}

}  // namespace tidal::golden
