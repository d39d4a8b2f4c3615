// Text to tokens and back, and chat templates, by libllama.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "backend/hyperparameters.h"

struct llama_model;
struct llama_vocab;

namespace tidal {

struct ChatMessage {
  std::string role;  ///< system, user or assistant
  std::string content;
};

/// The vocabulary of a GGUF file: a libllama model without weights.
class Tokenizer {
 public:
  /// Throws Error `path: ...` when libllama cannot read the vocabulary. libllama checks less than load_model() does, so
  /// load the model first.
  explicit Tokenizer(const std::string& path);

  int vocab_size() const;
  /// Tokens of `text`. `add_special`: add the model's BOS (and EOS) where it wants them. `parse_special`: read control
  /// tokens in the text as such. Throws Error with the offset of the wrong byte for text that is not UTF-8.
  std::vector<Token> encode(std::string_view text, bool add_special, bool parse_special) const;
  /// The bytes of one token; they may be part of a UTF-8 character. Control tokens give "" unless `special`. Throws
  /// Error for a token outside the vocabulary.
  std::string piece(Token token, bool special = false) const;
  std::string decode(std::span<const Token> tokens) const;
  /// Ends an answer: EOS, EOT, ...
  bool is_end(Token token) const;

  /// True when the file has a chat template.
  bool has_chat_template() const;
  /// The prompt of a conversation by the file's chat template, without BOS. `add_assistant`: ends where the assistant
  /// starts to answer. Throws Error when the file has no template or one of a kind that libllama does not know.
  std::string apply_chat_template(std::span<const ChatMessage> messages, bool add_assistant) const;

  const llama_vocab* vocab() const;

 private:
  std::string path_;
  std::shared_ptr<llama_model> model_;
};

}  // namespace tidal
