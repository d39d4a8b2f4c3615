// POST /v1/chat/completions
#include "server/api/apis.h"
#include "server/api/chat_prompt.h"
#include "server/api/completion_reply.h"
#include "server/api/request.h"
#include "server/error.h"

namespace tidal::server {
namespace {

constexpr int kMostTopLogprobs = 20;

/// Whoever asks for what the server does not do is told so: an answer that looks right would be worse.
void refuse_what_is_missing(const Fields& fields) {
  if (const Json* tools = fields.array("tools"); tools && !tools->empty()) {
    const Json* choice = fields.find("tool_choice");
    if (!choice || *choice != "none") refuse("tools", "'tools': this server does not call tools yet");
  }
  if (const Json* format = fields.object("response_format")) {
    const std::string type = Fields(*format, "response_format.").string("type").value_or("text");
    if (type != "text") refuse("response_format", "'response_format': '{}' given, expected text", type.substr(0, 60));
  }
}

}  // namespace

void chat_completions(Service& service, const ExchangePointer& exchange) {
  const Json body = parse_object(exchange->request().body);
  const Fields fields(body);
  refuse_what_is_missing(fields);
  Generation generation = generation_from(fields, service);
  CompletionForm form{.chat = true};
  form.stream = fields.boolean("stream").value_or(false);
  if (const Json* options = fields.object("stream_options")) {
    form.include_usage = Fields(*options, "stream_options.").boolean("include_usage").value_or(false);
  }
  form.logprobs = fields.boolean("logprobs").value_or(false);
  if (form.logprobs) {
    generation.top_logprobs = static_cast<int>(fields.integer("top_logprobs", 0, kMostTopLogprobs).value_or(0));
  }
  const auto choices = static_cast<size_t>(fields.integer("n", 1, kMostChoices).value_or(1));
  const std::string prompt = chat_prompt(service, messages_from(fields));
  generation.prompt = service.tokenizer().encode(prompt, true, true);
  const auto reply = std::make_shared<CompletionReply>(service, exchange, form, choices, 1);
  service.start(std::vector<Generation>(choices, generation), reply, exchange);
  reply->open();
}

}  // namespace tidal::server
