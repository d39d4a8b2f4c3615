// POST /v1/responses: OpenAI's newer API, of which this is the text.
#include <mutex>

#include "server/api/apis.h"
#include "server/api/chat_prompt.h"
#include "server/api/request.h"
#include "server/error.h"

namespace tidal::server {
namespace {

/// One response, whole or as a stream of events in the order that clients insist on.
class ResponseReply final : public Reply {
 public:
  ResponseReply(Service& service, ExchangePointer exchange, bool stream)
      : service_(service),
        exchange_(std::move(exchange)),
        streams_(stream),
        id_(new_id("resp_")),
        item_id_(new_id("msg_")),
        created_(now()) {}

  /// Begins a stream, once it is certain that there will be one.
  void open() {
    if (!streams_) return;
    std::call_once(opened_, [this] {
      stream_ = service_.open_stream(exchange_);
      send("response.created", {{"response", response("in_progress", Json::array())}});
      send("response.in_progress", {{"response", response("in_progress", Json::array())}});
      send("response.output_item.added", {{"output_index", 0}, {"item", item("in_progress", Json::array())}});
      send("response.content_part.added", about_part({{"part", part("")}}));
    });
  }

  void piece(size_t, const Piece& piece) override {
    open();
    text_ += piece.text;
    if (streams_) {
      send("response.output_text.delta", about_part({{"delta", piece.text}, {"logprobs", Json::array()}}));
    }
  }

  void ended(size_t, const Ending& ending) override {
    open();
    const char* status = ending.natural() ? "completed" : "incomplete";
    const Json output = item(status, Json::array({part(text_)}));
    Json whole = response(status, Json::array({output}));
    if (!ending.natural()) whole["incomplete_details"] = {{"reason", "max_output_tokens"}};
    const JobReport& report = ending.report;
    whole["usage"] = {{"input_tokens", report.prompt_tokens},
                      {"input_tokens_details", {{"cached_tokens", report.cached_tokens}}},
                      {"output_tokens", ending.tokens},
                      {"output_tokens_details", {{"reasoning_tokens", 0}}},
                      {"total_tokens", report.prompt_tokens + ending.tokens}};
    if (!streams_) return respond(exchange_, whole);
    send("response.output_text.done", about_part({{"text", text_}, {"logprobs", Json::array()}}));
    send("response.content_part.done", about_part({{"part", part(text_)}}));
    send("response.output_item.done", {{"output_index", 0}, {"item", output}});
    send(ending.natural() ? "response.completed" : "response.incomplete", {{"response", whole}});
    stream_->end(false);
  }

  void failed(int status, const std::string& message) override {
    if (!streams_) return exchange_->respond(status, "application/json", error_body(status, message));
    open();
    Json whole = response("failed", Json::array());
    whole["error"] = {{"code", "server_error"}, {"message", message}};
    send("response.failed", {{"response", whole}});
    stream_->end(false);
  }

 private:
  static Json part(const std::string& text) {
    return {{"type", "output_text"}, {"text", text}, {"annotations", Json::array()}, {"logprobs", Json::array()}};
  }

  Json item(const char* status, Json content) const {
    return {{"id", item_id_},
            {"type", "message"},
            {"role", "assistant"},
            {"status", status},
            {"content", std::move(content)}};
  }

  Json response(const char* status, Json output) const {
    return {{"id", id_},
            {"object", "response"},
            {"created_at", created_},
            {"status", status},
            {"model", service_.parts().model},
            {"output", std::move(output)},
            {"error", nullptr},
            {"incomplete_details", nullptr},
            {"instructions", nullptr},
            {"metadata", Json::object()},
            {"parallel_tool_calls", false},
            {"tool_choice", "none"},
            {"tools", Json::array()},
            {"temperature", nullptr},
            {"top_p", nullptr},
            {"usage", nullptr}};
  }

  Json about_part(Json fields) const {
    fields["item_id"] = item_id_;
    fields["output_index"] = 0;
    fields["content_index"] = 0;
    return fields;
  }

  void send(const char* type, const Json& fields) {
    Json event{{"type", type}, {"sequence_number", sequence_++}};
    event.update(fields);
    stream_->send(event, type);
  }

  Service& service_;
  ExchangePointer exchange_;
  bool streams_;
  std::string id_, item_id_, text_;
  int64_t created_;
  int64_t sequence_ = 0;
  std::once_flag opened_;
  std::shared_ptr<EventStream> stream_;
};

/// `input` is a text, or messages.
std::vector<ChatMessage> input_of(const Fields& fields) {
  std::vector<ChatMessage> messages;
  if (const auto instructions = fields.string("instructions")) messages.push_back({"system", *instructions});
  const Json* input = fields.find("input");
  if (!input) refuse("input", "'input': none given, expected a string or messages");
  if (input->is_string()) {
    messages.push_back({"user", text_of(*input, "input")});
    return messages;
  }
  for (ChatMessage& message : messages_from(fields, "input")) messages.push_back(std::move(message));
  return messages;
}

}  // namespace

void responses(Service& service, const ExchangePointer& exchange) {
  const Json body = parse_object(exchange->request().body);
  const Fields fields(body);
  if (const Json* tools = fields.array("tools"); tools && !tools->empty()) {
    refuse("tools", "'tools': this server does not call tools yet");
  }
  if (fields.find("previous_response_id")) {
    refuse("previous_response_id", "'previous_response_id': this server keeps no responses, send the conversation");
  }
  Generation generation = generation_from(fields, service);
  if (const auto most = fields.integer("max_output_tokens", 1, INT64_MAX / 2)) generation.most = *most;
  generation.prompt = service.tokenizer().encode(chat_prompt(service, input_of(fields)), true, true);
  const auto reply = std::make_shared<ResponseReply>(service, exchange, fields.boolean("stream").value_or(false));
  service.start({std::move(generation)}, reply, exchange);
  reply->open();
}

}  // namespace tidal::server
