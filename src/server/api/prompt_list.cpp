#include "server/api/prompt_list.h"

#include <algorithm>

#include "server/error.h"

namespace tidal::server {
namespace {

constexpr size_t kMostPrompts = 64;

class Prompts {
 public:
  Prompts(const Tokenizer& tokenizer, PromptParts parts) : tokenizer_(tokenizer), mixed_(parts == PromptParts::Mixed) {}

  std::vector<Token> read(const Json& prompt, const std::string& path) const {
    std::vector<Token> tokens;
    if (!prompt.is_array()) {
      add_text(tokens, prompt, path);
      return tokens;
    }
    for (size_t i = 0; i < prompt.size(); ++i) {
      const std::string at = fmt::format("{}[{}]", path, i);
      if (mixed_ && !prompt[i].is_number()) {
        add_text(tokens, prompt[i], at);
        continue;
      }
      const int64_t token = prompt[i].is_number_integer() ? prompt[i].get<int64_t>() : -1;
      if (token < 0 || token >= tokenizer_.vocab_size()) {
        refuse(path, "'{}': expected a token from 0 to {}", at, tokenizer_.vocab_size() - 1);
      }
      tokens.push_back(static_cast<Token>(token));
    }
    return tokens;
  }

  /// Whether an array holds prompts, not the parts of one.
  bool is_list(const Json& given) const {
    if (!given.is_array() || given.empty()) return false;
    const auto number = [](const Json& one) { return one.is_number(); };
    return mixed_ ? std::none_of(given.begin(), given.end(), number) : !number(given[0]);
  }

 private:
  void add_text(std::vector<Token>& tokens, const Json& text, const std::string& path) const {
    const Json* string = &text;
    std::string at = path;
    if (mixed_ && text.is_object()) {
      const Fields fields(text, path + ".");
      if (fields.find("multimodal_data")) {
        refuse(fields.path("multimodal_data"), "'{}': this model reads text alone", fields.path("multimodal_data"));
      }
      at = fields.path("prompt_string");
      string = fields.find("prompt_string");
      if (!string) refuse(at, "'{}': none given, expected a string", at);
    } else if (!text.is_string()) {
      refuse(path, "'{}': expected a string or tokens", path);
    }
    for (const Token token : tokenizer_.encode(text_of(*string, at), tokens.empty(), true)) tokens.push_back(token);
  }

  const Tokenizer& tokenizer_;
  bool mixed_;
};

}  // namespace

std::vector<std::vector<Token>> prompts_from(const Fields& fields, const Tokenizer& tokenizer, PromptParts parts) {
  const Json* given = fields.find("prompt");
  if (!given) refuse("prompt", "'prompt': none given, expected a string or tokens");
  const Prompts reader(tokenizer, parts);
  if (!reader.is_list(*given)) return {reader.read(*given, "prompt")};
  if (given->size() > kMostPrompts) {
    refuse("prompt", "'prompt': {} prompts given, expected at most {}", given->size(), kMostPrompts);
  }
  std::vector<std::vector<Token>> prompts;
  for (size_t i = 0; i < given->size(); ++i) prompts.push_back(reader.read((*given)[i], fmt::format("prompt[{}]", i)));
  return prompts;
}

}  // namespace tidal::server
