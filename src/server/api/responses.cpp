// POST /v1/responses: OpenAI's newer API, of which this is text and functions.
#include "server/api/answer_format.h"
#include "server/api/apis.h"
#include "server/api/request.h"
#include "server/api/response_input.h"
#include "server/api/response_reply.h"
#include "server/api/tools.h"
#include "server/error.h"

namespace tidal::server {

void responses(Service& service, const ExchangePointer& exchange) {
  const Json body = parse_object(exchange->request().body);
  const Fields fields(body);
  for (const char* name : {"previous_response_id", "conversation"}) {
    if (fields.find(name)) refuse(name, "'{}': this server keeps no responses, send the conversation", name);
  }
  Generation generation = generation_from(fields, service);
  if (const auto most = fields.integer("max_output_tokens", 1, INT64_MAX / 2)) generation.most = *most;
  const ChatOptions options = chat_options_from(fields, ToolForm::Flat);
  if (const Json* text = fields.object("text")) {
    hold_to_format(Fields(*text, "text.").object("format"), "text.format", options, generation);
  }
  ResponseForm form;
  form.stream = fields.boolean("stream").value_or(false);
  if (const Json* tools = fields.array("tools")) form.tools = *tools;
  if (const Json* choice = fields.find("tool_choice")) form.tool_choice = *choice;
  form.parallel_calls = options.parallel.value_or(true);
  form.format = prepare_chat(service, response_messages_from(fields), options, generation);
  const auto reply = std::make_shared<ResponseReply>(service, exchange, std::move(form));
  service.start({std::move(generation)}, reply, exchange);
  reply->open();
}

}  // namespace tidal::server
