// POST /v1/completions
#include "server/api/apis.h"
#include "server/api/completion_reply.h"
#include "server/api/prompt_list.h"
#include "server/api/request.h"
#include "server/error.h"

namespace tidal::server {

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
  const std::vector<std::vector<Token>> prompts = prompts_from(fields, service.tokenizer(), PromptParts::Alike);
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
