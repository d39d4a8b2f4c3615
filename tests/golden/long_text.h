// Long real text for the tests of sparse decoding: the KJV, with or without a pass key hidden in it.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "model/model.h"
#include "text/tokenizer.h"

namespace tidal::golden {

/// A model with its tokenizer and the tokens of the KJV.
class LongText {
 public:
  /// nullopt when the model or the KJV is not there.
  static std::optional<LongText> open(const std::string& model, int threads, const std::string& backend = "cpu");

  Backend& backend() const { return *backend_; }
  const Model& model() const { return *model_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  /// `count` tokens from the n-th of eight places that are spread evenly over the text.
  std::span<const Token> place(size_t n, size_t count) const { return text(n * tokens_.size() / 8, count); }
  /// `count` tokens of the text from token `first` on.
  std::span<const Token> text(size_t first, size_t count) const { return std::span(tokens_).subspan(first, count); }
  std::vector<Token> encode(const std::string& text) const { return tokenizer_->encode(text, false, false); }

 private:
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::vector<Token> tokens_;
};

/// Five digits, another for every number.
std::string pass_key(int number);
/// The sentence that hides it, and the question whose answer begins with it.
std::string pass_key_sentence(const std::string& key);
std::string pass_key_question();

/// How the question behind the document gets into the cache.
enum class Question {
  Dense,   ///< as part of the prefill
  Sparse,  ///< token by token, by the plan
};

/// Answers greedily behind `document` (which stays as it is) and says whether the answer begins with `key`.
bool finds_pass_key(Engine& engine, const LongText& text, const Sequence& document, const std::string& key,
                    Question how);

/// The position of the highest logit.
Token argmax(std::span<const float> logits);
/// Log-probabilities of `logits`, in place.
void log_softmax(std::vector<float>& logits);

}  // namespace tidal::golden
