#include "text/tokenizer.h"

#include <fmt/format.h>
#include <llama.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <mutex>
#include <optional>

#include "core/error.h"
#include "core/utf8.h"
#include "text/deep_stack.h"
#include "text/llama_log.h"
#include "text/tool_chat.h"

namespace tidal {

namespace {

/// A string of the file's metadata; "" where it has none of this name.
std::string text_of(const llama_model& model, const char* key) {
  std::string text(128, '\0');
  const int32_t length = llama_model_meta_val_str(&model, key, text.data(), text.size());
  text.resize(static_cast<size_t>(std::clamp<int32_t>(length, 0, static_cast<int32_t>(text.size()) - 1)));
  return text;
}

}  // namespace

Tokenizer::Tokenizer(const std::string& path) : path_(path) {
  // libllama would wait for a writer of a FIFO.
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(path, ignored)) fail("{}: is not a regular file, expected a GGUF file", path);
  const LlamaErrors errors;
  llama_model_params params = llama_model_default_params();
  params.vocab_only = true;
  // The vocabulary is in the first part of a split model; libllama need not open the others, nor read them its way.
  llama_model_kv_override whole[2] = {};
  whole[0].tag = LLAMA_KV_OVERRIDE_TYPE_INT;
  std::strcpy(whole[0].key, "split.count");
  whole[0].val_i64 = 1;
  params.kv_overrides = whole;
  model_ = std::shared_ptr<llama_model>(llama_model_load_from_file(path.c_str(), params), llama_model_free);
  if (!model_) {
    const std::string reason = errors.first();
    if (reason.find("bad_alloc") != std::string::npos) {
      fail("{}: out of memory: libllama cannot read its vocabulary", path);
    }
    fail("{}: libllama cannot read its vocabulary: {}", path, reason.empty() ? "it gives no reason" : reason);
  }
  if (vocab_size() < 1) fail("{}: it has no vocabulary, expected a model of text", path);
  warnings_ = errors.warnings();
  const enum llama_vocab_type type = llama_vocab_type(vocab());
  recurses_ = type == LLAMA_VOCAB_TYPE_BPE && pretokenizer_recurses(text_of(*model_, "tokenizer.ggml.pre"));
  const bool knows_flags = type == LLAMA_VOCAB_TYPE_SPM || type == LLAMA_VOCAB_TYPE_BPE || type == LLAMA_VOCAB_TYPE_UGM;
  const bool adds_start = type == LLAMA_VOCAB_TYPE_WPM || (knows_flags && llama_vocab_get_add_bos(vocab()));
  adds_end_ = type == LLAMA_VOCAB_TYPE_WPM || (knows_flags && llama_vocab_get_add_eos(vocab()));
  // libllama would end the process when it needs a token that the file lacks.
  const llama_token end = type == LLAMA_VOCAB_TYPE_WPM ? llama_vocab_sep(vocab()) : llama_vocab_eos(vocab());
  if (adds_start && llama_vocab_bos(vocab()) == LLAMA_TOKEN_NULL) {
    fail("{}: its tokenizer begins every text with a BOS token, but the file names none", path);
  }
  if (adds_end_ && end == LLAMA_TOKEN_NULL) {
    fail("{}: its tokenizer ends every text with an EOS token, but the file names none", path);
  }
  set_chat_template("", "");
}

const llama_vocab* Tokenizer::vocab() const { return llama_model_get_vocab(model_.get()); }

int Tokenizer::vocab_size() const { return llama_vocab_n_tokens(vocab()); }

std::vector<Token> Tokenizer::encode(std::string_view text, bool add_special, bool parse_special) const {
  check_text(text, "text");
  // A token takes at least a byte, but BOS and EOS come on top.
  constexpr size_t kSpecial = 8;
  if (text.size() > std::numeric_limits<int32_t>::max() - kSpecial) {
    fail("text: {} bytes are too many, expected less than 2 GiB", text.size());
  }
  // Short words, as nearly all texts have, need no more stack than any thread has.
  constexpr size_t kOrdinary = size_t{512} << 10;
  const size_t stack = recurses_ ? pretokenizer_stack(text) : 0;
  if (stack > kMostStack) {
    fail(
        "text: a part of it has over a million characters without white space, which libllama's tokenizer cannot take");
  }
  std::vector<Token> tokens;
  try {
    if (stack <= kOrdinary) {
      tokens = tokenize(text, add_special, parse_special);
    } else {
      run_on_stack(stack, [&] { tokens = tokenize(text, add_special, parse_special); });
    }
  } catch (const Error&) {
    throw;
  } catch (const std::runtime_error& error) {
    fail("text: libllama cannot make tokens of it: {}", error.what());
  }
  if (add_special && adds_end_ && !tokens.empty()) tokens.pop_back();
  return tokens;
}

std::vector<Token> Tokenizer::tokenize(std::string_view text, bool add_special, bool parse_special) const {
  constexpr size_t kSpecial = 8;
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

/// The chat template; parsed when it is first needed, since a prompt without chat needs none.
struct Tokenizer::Chat {
  std::string name, source;  // what errors call it; Jinja text, "" for none
  bool built_in = false;     // `name` is one of libllama's
  std::string variables;
  std::mutex mutex;
  std::optional<ChatTemplate> parsed;
  std::optional<ToolTemplate> tools;
};

void Tokenizer::set_chat_template(const std::string& choice, const std::string& variables) {
  auto chat = std::make_shared<Chat>();
  chat->variables = variables;
  if (choice.empty()) {
    chat->name = path_;
    const char* source = llama_model_chat_template(model_.get(), nullptr);
    chat->source = source ? source : "";
  } else {
    chat->name = choice;
    const std::vector<std::string> names = ChatTemplate::built_in_names();
    chat->built_in = std::find(names.begin(), names.end(), choice) != names.end();
    std::error_code ignored;
    if (chat->built_in) {
      if (!variables.empty()) fail("chat template: '{}' is libllama's own and has no variables", choice);
    } else if (std::filesystem::is_regular_file(choice, ignored)) {
      std::ifstream file(choice, std::ios::binary);
      chat->source.assign(std::istreambuf_iterator<char>(file), {});
      if (!file || chat->source.empty()) fail("{}: is empty or cannot be read, expected a chat template", choice);
      if (find_invalid_utf8(chat->source)) fail("{}: is not UTF-8, expected a chat template", choice);
    } else {
      fail("chat template: '{}' is neither a file nor one of libllama's: {}", choice, fmt::join(names, ", "));
    }
  }
  chat_ = std::move(chat);
}

bool Tokenizer::has_chat_template() const { return chat_->built_in || !chat_->source.empty(); }

bool Tokenizer::approximates_chat_template() const { return !ChatTemplate::renders_jinja() && !chat_->source.empty(); }

const ChatTemplate& Tokenizer::chat_template() const {
  const std::lock_guard lock(chat_->mutex);
  return parsed_chat_template();
}

const ToolTemplate& Tokenizer::tool_template() const {
  const std::lock_guard lock(chat_->mutex);
  if (!chat_->tools) {
    // Steps are counted here alone: one that does not come to an end is found before it is rendered without bounds.
    const ChatMessage probe{"user", "?"};
    parsed_chat_template().render({&probe, 1}, true);
    if (chat_->built_in) fail("chat template: '{}' is libllama's own and has no tools", chat_->name);
    const char* own = llama_model_chat_template(model_.get(), nullptr);
    const bool is_own = own && chat_->source == own;
    chat_->tools.emplace(chat_->name, model_.get(), is_own ? "" : chat_->source, chat_->variables);
  }
  return *chat_->tools;
}

const ChatTemplate& Tokenizer::parsed_chat_template() const {
  if (!chat_->parsed) {
    if (chat_->built_in) {
      chat_->parsed = ChatTemplate::built_in(chat_->name);
    } else if (chat_->source.empty()) {
      fail("{}: it has no chat template, expected a model made for chat or --chat-template FILE|NAME", path_);
    } else {
      const auto text = [&](Token token) { return token == LLAMA_TOKEN_NULL ? "" : piece(token, true); };
      chat_->parsed.emplace(chat_->name, chat_->source,
                            ChatTemplateVariables{.bos_token = text(llama_vocab_bos(vocab())),
                                                  .eos_token = text(llama_vocab_eos(vocab())),
                                                  .pad_token = text(llama_vocab_pad(vocab())),
                                                  .more = chat_->variables});
    }
  }
  return *chat_->parsed;
}

std::string Tokenizer::apply_chat_template(std::span<const ChatMessage> messages, bool add_assistant,
                                           const std::string& variables) const {
  std::string text = chat_template().render(messages, add_assistant, variables);
  // encode() adds a BOS where the vocabulary wants it: not twice.
  const Token bos = llama_vocab_bos(vocab());
  if (llama_vocab_get_add_bos(vocab()) && bos != LLAMA_TOKEN_NULL) {
    const std::string written = piece(bos, true);
    if (text.starts_with(written)) text.erase(0, written.size());
  }
  return text;
}

}  // namespace tidal
