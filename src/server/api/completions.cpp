// POST /v1/completions
#include "server/api/apis.h"
#include "server/api/completion_reply.h"
#include "server/api/request.h"
#include "server/error.h"

namespace tidal::server {
namespace {

constexpr size_t kMostPrompts = 64;

std::vector<Token> tokens_of(const Json& prompt, const std::string& path, const Tokenizer& tokenizer) {
  if (prompt.is_string()) return tokenizer.encode(text_of(prompt, path), true, true);
  std::vector<Token> tokens;
  for (size_t i = 0; i < prompt.size(); ++i) {
    const int64_t token = prompt[i].is_number_integer() ? prompt[i].get<int64_t>() : -1;
    if (token < 0 || token >= tokenizer.vocab_size()) {
      refuse(path, "'{}[{}]': expected a token from 0 to {}", path, i, tokenizer.vocab_size() - 1);
    }
    tokens.push_back(static_cast<Token>(token));
  }
  return tokens;
}

/// A string, tokens, or a list of either.
std::vector<std::vector<Token>> prompts_of(const Fields& fields, const Tokenizer& tokenizer) {
  const Json* given = fields.find("prompt");
  if (!given) refuse("prompt", "'prompt': none given, expected a string or tokens");
  const bool list = given->is_array() && !given->empty() && !(*given)[0].is_number();
  if (!list) {
    if (!given->is_string() && !given->is_array()) refuse("prompt", "'prompt': expected a string or tokens");
    return {tokens_of(*given, "prompt", tokenizer)};
  }
  if (given->size() > kMostPrompts) {
    refuse("prompt", "'prompt': {} prompts given, expected at most {}", given->size(), kMostPrompts);
  }
  std::vector<std::vector<Token>> prompts;
  for (size_t i = 0; i < given->size(); ++i) {
    const std::string path = fmt::format("prompt[{}]", i);
    const Json& one = (*given)[i];
    if (!one.is_string() && !one.is_array()) refuse(path, "'{}': expected a string or tokens", path);
    prompts.push_back(tokens_of(one, path, tokenizer));
  }
  return prompts;
}

}  // namespace

void completions(Service& service, const ExchangePointer& exchange) {
  const Json body = parse_object(exchange->request().body);
  const Fields fields(body);
  Generation generation = generation_from(fields, service);
  CompletionForm form = form_from(fields);
  if (const auto logprobs = fields.integer("logprobs", 0, kMostTopLogprobs)) {
    form.logprobs = true;
    generation.top_logprobs = static_cast<int>(*logprobs);
  }
  for (const char* name : {"suffix", "best_of", "echo"}) {
    const Json* value = fields.find(name);
    if (value && *value != Json(false) && *value != Json(1) && *value != Json("")) {  // which say that nothing is
      refuse(name, "'{}': this server does not do that, expected none", name);
    }
  }
  const auto each = static_cast<size_t>(fields.integer("n", 1, kMostChoices).value_or(1));
  const std::vector<std::vector<Token>> prompts = prompts_of(fields, service.tokenizer());
  if (prompts.size() * each > kMostChoices) {
    refuse("n", "'n': {} answers to {} prompts asked for, expected at most {} together", each, prompts.size(),
           kMostChoices);
  }
  std::vector<Generation> generations;
  for (const std::vector<Token>& prompt : prompts) {
    for (size_t i = 0; i < each; ++i) {
      generations.push_back(generation);
      generations.back().prompt = prompt;
    }
  }
  const auto reply = std::make_shared<CompletionReply>(service, exchange, form, generations.size(), prompts.size());
  service.start(std::move(generations), reply, exchange);
  reply->open();
}

}  // namespace tidal::server
