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

/// The vocabulary of a GGUF file (a libllama model without weights).
class Tokenizer {
 public:
  /// Throws Error `path: ...` when libllama cannot read the vocabulary.
  explicit Tokenizer(const std::string& path);

  int vocab_size() const;
  /// Tokens of `text`. `special`: add the model's BOS where it wants one, and read control tokens in the text as such.
  /// Throws Error for text that is not UTF-8.
  std::vector<Token> encode(std::string_view text, bool add_special, bool parse_special) const;
  /// The bytes of one token; they may be part of a UTF-8 character. Control tokens give "" unless `special`.
  std::string piece(Token token, bool special = false) const;
  std::string decode(std::span<const Token> tokens) const;
  /// Ends an answer: EOS, EOT, ...
  bool is_end(Token token) const;

  /// True when the file has a chat template.
  bool has_chat_template() const;
  /// The prompt of a conversation by the file's chat template. Throws Error when there is none or libllama does not
  /// know its kind.
  std::string apply_chat_template(std::span<const ChatMessage> messages, bool add_assistant) const;

  const llama_vocab* vocab() const;

 private:
  std::shared_ptr<llama_model> model_;
};

/// Streams pieces but holds back the bytes of a character that is not complete yet.
class Utf8Stream {
 public:
  /// Adds bytes; returns those that form whole characters.
  std::string push(std::string_view bytes);
  /// What is left at the end, even if incomplete.
  std::string finish();

 private:
  std::string pending_;
};

/// True when `text` is valid UTF-8; otherwise `offset` is that of the first wrong byte.
bool is_utf8(std::string_view text, size_t& offset);

}  // namespace tidal
