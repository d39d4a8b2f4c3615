// POST /v1/chat/completions
#include "core/error.h"
#include "server/api/apis.h"
#include "server/api/chat_prompt.h"
#include "server/api/completion_reply.h"
#include "server/api/request.h"
#include "server/api/tools.h"
#include "server/error.h"
#include "text/json_schema.h"

namespace tidal::server {
namespace {

/// The grammar that `response_format` asks for; "" for none.
std::string format_grammar(const Fields& fields) {
  const Json* given = fields.object("response_format");
  if (!given) return "";
  const Fields format(*given, "response_format.");
  const std::string type = format.string("type").value_or("text");
  const Json* schema = format.object("schema");  // llama-server's place for one
  if (type == "json_schema") {
    const Json* named = format.object("json_schema");
    if (named) schema = Fields(*named, "response_format.json_schema.").object("schema");
    if (!schema) refuse("response_format", "'response_format': json_schema without a schema");
  } else if (type != "text" && type != "json_object") {
    refuse("response_format", "'response_format.type': '{}' given, expected text, json_object or json_schema",
           type.substr(0, 60));
  }
  if (type == "text") return "";
  try {
    return schema ? grammar_of_schema(dump(*schema)) : grammar_of_json_object();
  } catch (const Error& error) {
    refuse("response_format", "'response_format': its schema, {}", error.what());
  }
}

}  // namespace

void chat_completions(Service& service, const ExchangePointer& exchange) {
  const Json body = parse_object(exchange->request().body);
  const Fields fields(body);
  Generation generation = generation_from(fields, service);
  const ChatOptions options = chat_options_from(fields);
  if (std::string grammar = format_grammar(fields); !grammar.empty()) {
    if (!options.tools.empty()) refuse("response_format", "'response_format': give either this or tools, not both");
    if (!generation.sampler.grammar.empty()) {
      refuse("response_format", "'response_format': give either this or a grammar, not both");
    }
    generation.sampler.grammar = std::move(grammar);
  }
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
