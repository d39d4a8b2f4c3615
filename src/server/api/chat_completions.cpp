// POST /v1/chat/completions
#include "server/api/answer_format.h"
#include "server/api/apis.h"
#include "server/api/chat_prompt.h"
#include "server/api/completion_reply.h"
#include "server/api/request.h"
#include "server/api/tools.h"

namespace tidal::server {
void chat_completions(Service& service, const ExchangePointer& exchange) {
  const Json body = parse_object(exchange->request().body);
  const Fields fields(body);
  Generation generation = generation_from(fields, service);
  const ChatOptions options = chat_options_from(fields);
  hold_to_format(fields.object("response_format"), "response_format", options, generation);
  CompletionForm form = form_from(fields);
  form.chat = true;
  form.logprobs = fields.boolean("logprobs").value_or(false);
  if (form.logprobs) {
    generation.top_logprobs = static_cast<int>(fields.integer("top_logprobs", 0, kMostTopLogprobs).value_or(0));
  }
  const auto choices = static_cast<size_t>(fields.integer("n", 1, kMostChoices).value_or(1));
  form.format = prepare_chat(service, messages_from(fields), options, generation);
  const auto reply = std::make_shared<CompletionReply>(service, exchange, form, choices, 1);
  service.start(std::vector<Generation>(choices, generation), reply, exchange);
  reply->open();
}

void count_chat_tokens(Service& service, const ExchangePointer& exchange) {
  const Json body = parse_object(exchange->request().body);
  const Fields fields(body);
  Generation generation;
  prepare_chat(service, messages_from(fields), chat_options_from(fields), generation);
  respond(exchange, {{"object", "response.input_tokens"}, {"input_tokens", generation.prompt.size()}});
}

}  // namespace tidal::server
