// POST /v1/messages and /v1/messages/count_tokens: Anthropic's API.
#include <mutex>
#include <optional>

#include "server/api/apis.h"
#include "server/api/message_blocks.h"
#include "server/api/request.h"
#include "server/api/tools.h"
#include "server/error.h"

namespace tidal::server {
namespace {

/// One message, whole or as a stream of Anthropic's events.
class MessageReply final : public Reply {
 public:
  /// `format`: how the answer is read; null where it is text alone.
  MessageReply(Service& service, ExchangePointer exchange, bool stream, size_t prompt_tokens,
               std::shared_ptr<const AnswerFormat> format)
      : service_(service),
        exchange_(std::move(exchange)),
        streams_(stream),
        prompt_tokens_(prompt_tokens),
        id_(new_id("msg_")) {
    if (format) parts_.emplace(std::move(format), new_id("").substr(0, 16));
  }

  /// Begins a stream, once it is certain that there will be one.
  void open() {
    if (!streams_) return;
    std::call_once(opened_, [this] {
      stream_ = service_.open_stream(exchange_);
      Json message = this->message(Json::array());
      message["usage"] = {{"input_tokens", prompt_tokens_}, {"output_tokens", 0}};
      send({{"type", "message_start"}, {"message", std::move(message)}});
    });
  }

  void piece(size_t, const Piece& piece) override {
    open();
    if (streams_) {
      send(parts_ ? parts_->push(piece.text) : std::vector<ChatDelta>{{.text = piece.text}});
    } else if (parts_) {
      parts_->append(piece.text);
    } else {
      text_ += piece.text;
    }
  }

  void ended(size_t, const Ending& ending) override {
    open();
    std::vector<ChatDelta> last;
    if (parts_) last = parts_->finish(ending.natural());
    const bool calls = parts_ && !parts_->answer().calls.empty();
    const bool by_stop = !ending.stop.empty();
    const char* reason = !ending.natural() ? "max_tokens" : calls ? "tool_use" : by_stop ? "stop_sequence" : "end_turn";
    const Json stop = by_stop && !calls ? Json(ending.stop) : Json();
    const JobReport& report = ending.report;
    const Json usage{{"input_tokens", report.prompt_tokens - report.cached_tokens},
                     {"cache_read_input_tokens", report.cached_tokens},
                     {"cache_creation_input_tokens", 0},
                     {"output_tokens", ending.tokens}};
    if (!streams_) {
      Json body = message(blocks(parts_ ? parts_->answer() : ChatAnswer{text_, "", {}}));
      body["stop_reason"] = reason;
      body["stop_sequence"] = stop;
      body["usage"] = usage;
      return respond(exchange_, body);
    }
    send(last);
    if (!block_) begin_block({}, {{"type", "text"}, {"text", ""}});
    send({{"type", "content_block_stop"}, {"index", index_}});
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
  using Kind = ChatDelta::Kind;

  /// What a block of a stream is of.
  struct Block {
    Kind kind = Kind::Content;
    size_t call = 0;
    bool operator==(const Block&) const = default;
  };

  Json message(Json content) const {
    return {{"id", id_},
            {"type", "message"},
            {"role", "assistant"},
            {"model", service_.parts().model},
            {"content", std::move(content)},
            {"stop_reason", nullptr},
            {"stop_sequence", nullptr}};
  }

  static Json blocks(const ChatAnswer& answer) {
    Json blocks = Json::array();
    if (!answer.reasoning.empty()) {
      blocks.push_back({{"type", "thinking"}, {"thinking", answer.reasoning}, {"signature", ""}});
    }
    if (!answer.content.empty() || blocks.size() + answer.calls.size() == 0) {
      blocks.push_back({{"type", "text"}, {"text", answer.content}});
    }
    for (const ChatToolCall& call : answer.calls) {
      // A call that was cut off is no JSON: an object without what it had would be another call.
      Json input = Json::parse(call.arguments, nullptr, false);
      if (!input.is_object()) input = Json::object();
      blocks.push_back({{"type", "tool_use"}, {"id", call.id}, {"name", call.name}, {"input", std::move(input)}});
    }
    return blocks;
  }

  void begin_block(Block block, Json content) {
    if (block_) send({{"type", "content_block_stop"}, {"index", index_++}});
    block_ = block;
    send({{"type", "content_block_start"}, {"index", index_}, {"content_block", std::move(content)}});
  }

  void send(const std::vector<ChatDelta>& deltas) {
    for (const ChatDelta& delta : deltas) {
      if (delta.kind == Kind::CallBegins) {
        begin_block({Kind::CallArguments, delta.call},
                    {{"type", "tool_use"}, {"id", delta.call_id}, {"name", delta.text}, {"input", Json::object()}});
        continue;
      }
      const char* name = delta.kind == Kind::Content     ? "text"
                         : delta.kind == Kind::Reasoning ? "thinking"
                                                         : "input_json";
      const char* field = delta.kind == Kind::CallArguments ? "partial_json" : name;
      if (delta.kind != Kind::CallArguments && block_ != Block{delta.kind, 0}) {
        begin_block({delta.kind, 0}, {{"type", name}, {name, ""}});
      }
      send({{"type", "content_block_delta"},
            {"index", index_},
            {"delta", {{"type", std::string(name) + "_delta"}, {field, delta.text}}}});
    }
  }

  void send(const Json& event) { stream_->send(event, event["type"].get_ref<const std::string&>()); }

  Service& service_;
  ExchangePointer exchange_;
  bool streams_;
  size_t prompt_tokens_;
  std::string id_, text_;
  std::optional<ChatAnswerStream> parts_;
  std::optional<Block> block_;  // the last that has begun
  size_t index_ = 0;            // its
  std::once_flag opened_;
  std::shared_ptr<EventStream> stream_;
};

}  // namespace

void messages(Service& service, const ExchangePointer& exchange) {
  const Json body = parse_object(exchange->request().body);
  const Fields fields(body);
  Generation generation = generation_from(fields, service);
  if (!fields.find("max_tokens")) refuse("max_tokens", "'max_tokens': none given, expected a number");
  generation.stops = strings_of(fields, "stop_sequences", 256);
  const auto format = prepare_chat(service, block_messages_from(fields), block_options_from(fields), generation);
  const auto reply = std::make_shared<MessageReply>(service, exchange, fields.boolean("stream").value_or(false),
                                                    generation.prompt.size(), format);
  service.start({std::move(generation)}, reply, exchange);
  reply->open();
}

void count_tokens(Service& service, const ExchangePointer& exchange) {
  const Json body = parse_object(exchange->request().body);
  const Fields fields(body);
  Generation generation;
  prepare_chat(service, block_messages_from(fields), block_options_from(fields), generation);
  respond(exchange, {{"input_tokens", generation.prompt.size()}});
}

}  // namespace tidal::server
