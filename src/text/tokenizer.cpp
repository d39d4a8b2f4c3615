#include "text/tokenizer.h"

#include <llama.h>

#include <algorithm>
#include <filesystem>
#include <limits>

#include "core/error.h"
#include "text/llama_log.h"
#include "text/utf8.h"

namespace tidal {

Tokenizer::Tokenizer(const std::string& path) : path_(path) {
  // libllama would wait for a writer of a FIFO.
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(path, ignored)) fail("{}: is not a regular file, expected a GGUF file", path);
  const LlamaErrors errors;
  llama_model_params params = llama_model_default_params();
  params.vocab_only = true;
  model_ = std::shared_ptr<llama_model>(llama_model_load_from_file(path.c_str(), params), llama_model_free);
  if (!model_) {
    const std::string reason = errors.first();
    fail("{}: libllama cannot read its vocabulary: {}", path, reason.empty() ? "it gives no reason" : reason);
  }
  if (vocab_size() < 1) fail("{}: it has no vocabulary, expected a model of text", path);
}

const llama_vocab* Tokenizer::vocab() const { return llama_model_get_vocab(model_.get()); }

int Tokenizer::vocab_size() const { return llama_vocab_n_tokens(vocab()); }

std::vector<Token> Tokenizer::encode(std::string_view text, bool add_special, bool parse_special) const {
  if (const auto offset = find_invalid_utf8(text)) {
    fail("text: byte {} (0x{:02x}) is not valid UTF-8", *offset, static_cast<unsigned char>(text[*offset]));
  }
  // A token takes at least a byte, but BOS and EOS come on top.
  constexpr size_t kSpecial = 8;
  if (text.size() > std::numeric_limits<int32_t>::max() - kSpecial) {
    fail("text: {} bytes are too many, expected less than 2 GiB", text.size());
  }
  const auto length = static_cast<int32_t>(text.size());
  std::vector<Token> tokens(text.size() / 2 + kSpecial);
  int32_t count = llama_tokenize(vocab(), text.data(), length, tokens.data(), static_cast<int32_t>(tokens.size()),
                                 add_special, parse_special);
  if (count < 0 && count != std::numeric_limits<int32_t>::min()) {
    tokens.resize(static_cast<size_t>(-count));
    count = llama_tokenize(vocab(), text.data(), length, tokens.data(), static_cast<int32_t>(tokens.size()),
                           add_special, parse_special);
  }
  if (count < 0) fail("text: libllama cannot make tokens of it");
  tokens.resize(static_cast<size_t>(count));
  return tokens;
}

std::string Tokenizer::piece(Token token, bool special) const {
  if (token < 0 || token >= vocab_size()) fail("token: {} is outside the vocabulary of {}", token, vocab_size());
  std::string bytes(32, '\0');
  int32_t count = llama_token_to_piece(vocab(), token, bytes.data(), static_cast<int32_t>(bytes.size()), 0, special);
  if (count < 0) {
    bytes.resize(static_cast<size_t>(-count));
    count = llama_token_to_piece(vocab(), token, bytes.data(), static_cast<int32_t>(bytes.size()), 0, special);
  }
  bytes.resize(static_cast<size_t>(std::max(count, 0)));
  return bytes;
}

std::string Tokenizer::decode(std::span<const Token> tokens) const {
  std::string text;
  for (const Token token : tokens) text += piece(token);
  return text;
}

bool Tokenizer::is_end(Token token) const { return llama_vocab_is_eog(vocab(), token); }

bool Tokenizer::has_chat_template() const { return llama_model_chat_template(model_.get(), nullptr) != nullptr; }

std::string Tokenizer::apply_chat_template(std::span<const ChatMessage> messages, bool add_assistant) const {
  const char* chat_template = llama_model_chat_template(model_.get(), nullptr);
  if (!chat_template) fail("{}: it has no chat template, expected a model made for chat", path_);
  std::vector<llama_chat_message> chat;
  size_t bytes = 256;
  for (const ChatMessage& message : messages) {
    chat.push_back({message.role.c_str(), message.content.c_str()});
    bytes += 2 * (message.role.size() + message.content.size());
  }
  std::string text(bytes, '\0');
  const auto apply = [&] {
    return llama_chat_apply_template(chat_template, chat.data(), chat.size(), add_assistant, text.data(),
                                     static_cast<int32_t>(text.size()));
  };
  int32_t count = apply();
  if (count > static_cast<int32_t>(text.size())) {
    text.resize(static_cast<size_t>(count));
    count = apply();
  }
  if (count < 0) {
    fail(
        "{}: libllama does not know the kind of its chat template, expected a common one such as chatml; a prompt "
        "without chat works",
        path_);
  }
  text.resize(static_cast<size_t>(count));
  return text;
}

}  // namespace tidal
