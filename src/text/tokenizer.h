// Text to tokens and back, by libllama, and the prompts of conversations.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "backend/hyperparameters.h"
#include "text/chat_template.h"

struct llama_model;
struct llama_vocab;

namespace tidal {

class ToolTemplate;

/// The vocabulary of a GGUF file: a libllama model without weights.
class Tokenizer {
 public:
  /// Throws Error `path: ...` when libllama cannot read the vocabulary. libllama checks less than load_model() does, so
  /// load the model first.
  explicit Tokenizer(const std::string& path);

  /// What libllama warned of when it read the vocabulary: what it guessed because the file does not say it.
  const std::vector<std::string>& warnings() const { return warnings_; }

  int vocab_size() const;
  /// Tokens of `text`, which something is to follow. `add_special`: add the BOS that the file asks for
  /// (`tokenizer.ggml.add_bos_token`); an EOS behind the text that it may ask for as well is left out, since what
  /// follows would be another text. `parse_special`: read control tokens in the text as such. Throws Error with the
  /// offset of the wrong byte for text that is not UTF-8 or holds a NUL, and for text with so long a word that libllama
  /// would run out of stack.
  std::vector<Token> encode(std::string_view text, bool add_special, bool parse_special) const;
  /// The bytes of one token; they may be part of a UTF-8 character. Control tokens give "" unless `special`. Throws
  /// Error for a token outside the vocabulary.
  std::string piece(Token token, bool special = false) const;
  std::string decode(std::span<const Token> tokens) const;
  /// Ends an answer: EOS, EOT, ...
  bool is_end(Token token) const;

  /// Takes another template than the file's: the name of one that libllama has (ChatTemplate::built_in_names()), else a
  /// file of Jinja; "" for the file's own. `variables`: ChatTemplateVariables::more. The template itself is looked at
  /// when it is first applied. Throws Error when `choice` is neither.
  void set_chat_template(const std::string& choice, const std::string& variables);
  /// True when there is a chat template, the file's or another.
  bool has_chat_template() const;
  /// True when prompts are libllama's own text for the kind of the template, not what the template itself renders: in a
  /// build without libllama-common.
  bool approximates_chat_template() const;
  /// The prompt of a conversation by the chat template, for encode() with `add_special`: a BOS that the tokenizer adds
  /// is left out. `add_assistant`: ends where the assistant starts to answer. Throws Error when there is no template
  /// and as ChatTemplate does. The date that a template may write stays that of the first call.
  /// `variables`: further ones, as ChatTemplate::render() has them.
  std::string apply_chat_template(std::span<const ChatMessage> messages, bool add_assistant,
                                  const std::string& variables = "") const;
  /// The template with what it has of tools. Throws Error as apply_chat_template() and ToolTemplate do.
  const ToolTemplate& tool_template() const;

  const llama_vocab* vocab() const;

 private:
  struct Chat;

  const ChatTemplate& chat_template() const;
  const ChatTemplate& parsed_chat_template() const;  // with the lock of chat_
  /// llama_tokenize() on `text` as it is; where that needs it, on a stack of its own.
  std::vector<Token> tokenize(std::string_view text, bool add_special, bool parse_special) const;

  std::string path_;
  std::shared_ptr<llama_model> model_;
  std::shared_ptr<Chat> chat_;
  std::vector<std::string> warnings_;
  bool recurses_ = false;  // libllama takes stack for every character of a word
  bool adds_end_ = false;  // llama_tokenize() ends a text by a token that is no part of it
};

}  // namespace tidal
