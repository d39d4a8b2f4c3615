#include "server/api/response_reply.h"

#include "server/api/apis.h"
#include "server/api/request.h"
#include "server/error.h"

namespace tidal::server {

using Kind = ChatDelta::Kind;

ResponseReply::ResponseReply(Service& service, std::shared_ptr<http::Exchange> exchange, ResponseForm form)
    : service_(service), exchange_(std::move(exchange)), form_(std::move(form)), id_(new_id("resp_")), created_(now()) {
  if (form_.format) parts_.emplace(form_.format, new_id("").substr(0, 16));
}

void ResponseReply::open() {
  if (!form_.stream) return;
  std::call_once(opened_, [this] {
    stream_ = service_.open_stream(exchange_);
    send("response.created", {{"response", response("in_progress", Json::array())}});
    send("response.in_progress", {{"response", response("in_progress", Json::array())}});
  });
}

void ResponseReply::piece(size_t, const Piece& piece) {
  open();
  if (!parts_) return add({.text = piece.text});
  if (!form_.stream) return parts_->append(piece.text);
  for (const ChatDelta& delta : parts_->push(piece.text)) add(delta);
}

void ResponseReply::ended(size_t, const Ending& ending) {
  open();
  if (parts_) {
    for (const ChatDelta& delta : parts_->finish(ending.natural())) add(delta);
  }
  for (const ChatDelta& delta : std::exchange(late_, {})) {
    if (item_ && item_->kind == Kind::CallArguments) end_item("completed");
    add(delta);
  }
  const char* status = ending.natural() ? "completed" : "incomplete";
  if (!item_ && output_.empty()) add({});  // an answer without a word is an empty message
  end_item(status);
  Json whole = response(status, std::move(output_));
  if (!ending.natural()) whole["incomplete_details"] = {{"reason", "max_output_tokens"}};
  const JobReport& report = ending.report;
  whole["usage"] = {{"input_tokens", report.prompt_tokens},
                    {"input_tokens_details", {{"cached_tokens", report.cached_tokens}}},
                    {"output_tokens", ending.tokens},
                    {"output_tokens_details", {{"reasoning_tokens", 0}}},
                    {"total_tokens", report.prompt_tokens + ending.tokens}};
  if (!form_.stream) return respond(exchange_, whole);
  send(ending.natural() ? "response.completed" : "response.incomplete", {{"response", whole}});
  stream_->end(false);
}

void ResponseReply::failed(int status, const std::string& message) {
  if (!form_.stream) return exchange_->respond(status, "application/json", error_body(status, message));
  open();
  Json whole = response("failed", Json::array());
  whole["error"] = {{"code", "server_error"}, {"message", message}};
  send("response.failed", {{"response", whole}});
  stream_->end(false);
}

Json ResponseReply::Item::part() const {
  if (kind == Kind::Reasoning) return {{"type", "reasoning_text"}, {"text", text}};
  return {{"type", "output_text"}, {"text", text}, {"annotations", Json::array()}, {"logprobs", Json::array()}};
}

Json ResponseReply::Item::json(const char* status) const {
  Json item{{"id", id}};
  if (kind == Kind::CallArguments) {
    item.update({{"type", "function_call"}, {"call_id", call_id}, {"name", name}, {"arguments", text}});
  } else {
    if (kind == Kind::Reasoning) {
      item.update({{"type", "reasoning"}, {"summary", Json::array()}});
    } else {
      item.update({{"type", "message"}, {"role", "assistant"}});
    }
    // Of one that has begun, the part is told by an event of its own.
    item["content"] = status == std::string_view("in_progress") ? Json::array() : Json::array({part()});
  }
  item["status"] = status;
  return item;
}

Json ResponseReply::response(const char* status, Json output) const {
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
          {"parallel_tool_calls", form_.parallel_calls},
          {"tool_choice", form_.tool_choice},
          {"tools", form_.tools},
          {"temperature", nullptr},
          {"top_p", nullptr},
          {"usage", nullptr}};
}

void ResponseReply::add(const ChatDelta& delta) {
  if (delta.kind == Kind::CallBegins) {
    begin_item({Kind::CallArguments, new_id("fc_"), "", delta.text, delta.call_id});
    return;
  }
  if (delta.kind != Kind::CallArguments && item_ && item_->kind == Kind::CallArguments) {
    late_.push_back(delta);  // its item would end the call's, whose arguments may go on
    return;
  }
  if (delta.kind != Kind::CallArguments && (!item_ || item_->kind != delta.kind)) {
    begin_item({delta.kind, new_id(delta.kind == Kind::Reasoning ? "rs_" : "msg_"), ""});
  }
  item_->text += delta.text;
  if (!form_.stream || delta.text.empty()) return;
  if (delta.kind == Kind::CallArguments) {
    send("response.function_call_arguments.delta", about_item({{"delta", delta.text}}));
  } else if (delta.kind == Kind::Reasoning) {
    send("response.reasoning_text.delta", about_item({{"content_index", 0}, {"delta", delta.text}}));
  } else {
    send("response.output_text.delta",
         about_item({{"content_index", 0}, {"delta", delta.text}, {"logprobs", Json::array()}}));
  }
}

void ResponseReply::begin_item(Item item) {
  if (item_) end_item("completed");
  item_ = std::move(item);
  if (!form_.stream) return;
  send("response.output_item.added", {{"output_index", output_.size()}, {"item", item_->json("in_progress")}});
  if (item_->kind == Kind::CallArguments) return;
  send("response.content_part.added", about_item({{"content_index", 0}, {"part", item_->part()}}));
}

void ResponseReply::end_item(const char* status) {
  const Item& item = *item_;
  if (form_.stream) {
    if (item.kind == Kind::CallArguments) {
      send("response.function_call_arguments.done", about_item({{"name", item.name}, {"arguments", item.text}}));
    } else {
      if (item.kind == Kind::Reasoning) {
        send("response.reasoning_text.done", about_item({{"content_index", 0}, {"text", item.text}}));
      } else {
        send("response.output_text.done",
             about_item({{"content_index", 0}, {"text", item.text}, {"logprobs", Json::array()}}));
      }
      send("response.content_part.done", about_item({{"content_index", 0}, {"part", item.part()}}));
    }
    send("response.output_item.done", {{"output_index", output_.size()}, {"item", item.json(status)}});
  }
  output_.push_back(item.json(status));
  item_.reset();
}

Json ResponseReply::about_item(Json fields) const {
  fields["item_id"] = item_->id;
  fields["output_index"] = output_.size();
  return fields;
}

void ResponseReply::send(const char* type, const Json& fields) {
  Json event{{"type", type}, {"sequence_number", sequence_++}};
  event.update(fields);
  stream_->send(event, type);
}

}  // namespace tidal::server
