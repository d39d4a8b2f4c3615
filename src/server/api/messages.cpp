// POST /v1/messages and /v1/messages/count_tokens: Anthropic's API.
#include <mutex>

#include "server/api/apis.h"
#include "server/api/chat_prompt.h"
#include "server/api/request.h"
#include "server/error.h"

namespace tidal::server {
namespace {

/// One message, whole or as a stream of Anthropic's events.
class MessageReply final : public Reply {
 public:
  MessageReply(Service& service, ExchangePointer exchange, bool stream, size_t prompt_tokens)
      : service_(service),
        exchange_(std::move(exchange)),
        streams_(stream),
        prompt_tokens_(prompt_tokens),
        id_(new_id("msg_")) {}

  /// Begins a stream, once it is certain that there will be one.
  void open() {
    if (!streams_) return;
    std::call_once(opened_, [this] {
      stream_ = std::make_shared<EventStream>(exchange_);
      service_.keep_alive(stream_);
      Json message = this->message(Json::array());
      message["usage"] = {{"input_tokens", prompt_tokens_}, {"output_tokens", 0}};
      send({{"type", "message_start"}, {"message", std::move(message)}});
      send({{"type", "content_block_start"}, {"index", 0}, {"content_block", {{"type", "text"}, {"text", ""}}}});
    });
  }

  void piece(size_t, const Piece& piece) override {
    open();
    if (!streams_) {
      text_ += piece.text;
      return;
    }
    send({{"type", "content_block_delta"}, {"index", 0}, {"delta", {{"type", "text_delta"}, {"text", piece.text}}}});
  }

  void ended(size_t, const Ending& ending) override {
    open();
    const bool by_stop = !ending.stop.empty();
    const char* reason = by_stop ? "stop_sequence" : ending.natural() ? "end_turn" : "max_tokens";
    const Json stop = by_stop ? Json(ending.stop) : Json();
    const JobReport& report = ending.report;
    const Json usage{{"input_tokens", report.prompt_tokens - report.cached_tokens},
                     {"cache_read_input_tokens", report.cached_tokens},
                     {"cache_creation_input_tokens", 0},
                     {"output_tokens", ending.tokens}};
    if (!streams_) {
      Json body = message(Json::array({{{"type", "text"}, {"text", text_}}}));
      body["stop_reason"] = reason;
      body["stop_sequence"] = stop;
      body["usage"] = usage;
      return exchange_->respond(200, "application/json", dump(body));
    }
    send({{"type", "content_block_stop"}, {"index", 0}});
    send({{"type", "message_delta"}, {"delta", {{"stop_reason", reason}, {"stop_sequence", stop}}}, {"usage", usage}});
    send({{"type", "message_stop"}});
    stream_->end(false);
  }

  void failed(int status, const std::string& message) override {
    if (!streams_) return exchange_->respond(status, "application/json", error_body(status, message));
    open();
    stream_->send(Json::parse(error_body(status, message)), "error");
    stream_->end(false);
  }

 private:
  Json message(Json content) const {
    return {{"id", id_},
            {"type", "message"},
            {"role", "assistant"},
            {"model", service_.parts().model},
            {"content", std::move(content)},
            {"stop_reason", nullptr},
            {"stop_sequence", nullptr}};
  }

  void send(const Json& event) { stream_->send(event, event["type"].get_ref<const std::string&>()); }

  Service& service_;
  ExchangePointer exchange_;
  bool streams_;
  size_t prompt_tokens_;
  std::string id_, text_;
  std::once_flag opened_;
  std::shared_ptr<EventStream> stream_;
};

std::vector<Token> prompt_of(const Fields& fields, const Service& service) {
  std::vector<ChatMessage> messages = messages_from(fields);
  if (const Json* system = fields.find("system")) {
    messages.insert(messages.begin(), {"system", content_text(*system, "system")});
  }
  return service.tokenizer().encode(chat_prompt(service, messages), true, true);
}

}  // namespace

void messages(Service& service, const ExchangePointer& exchange) {
  const Json body = parse_object(exchange->request().body);
  const Fields fields(body);
  if (const Json* tools = fields.array("tools"); tools && !tools->empty()) {
    refuse("tools", "'tools': this server does not call tools yet");
  }
  Generation generation = generation_from(fields, service);
  if (!fields.find("max_tokens")) refuse("max_tokens", "'max_tokens': none given, expected a number");
  generation.stops = strings_of(fields, "stop_sequences", 256);
  generation.prompt = prompt_of(fields, service);
  const auto reply = std::make_shared<MessageReply>(service, exchange, fields.boolean("stream").value_or(false),
                                                    generation.prompt.size());
  service.start({std::move(generation)}, reply, exchange);
  reply->open();
}

void count_tokens(Service& service, const ExchangePointer& exchange) {
  const Json body = parse_object(exchange->request().body);
  const size_t count = prompt_of(Fields(body), service).size();
  exchange->respond(200, "application/json", dump({{"input_tokens", count}}));
}

}  // namespace tidal::server
