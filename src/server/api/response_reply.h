// The answers of /v1/responses, whole or as a stream of events in the order that clients insist on.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "server/service.h"
#include "text/chat_answer.h"

namespace tidal::server {

/// What a response says of its request.
struct ResponseForm {
  bool stream = false;
  Json tools = Json::array();  ///< as they were given
  Json tool_choice = "auto";   ///< likewise
  bool parallel_calls = true;
  std::shared_ptr<const AnswerFormat> format{};  ///< how the answer is read, null where it is text alone
};

/// One response: items of thoughts, words and calls, one after the other. One thread at a time, but for open().
class ResponseReply final : public Reply {
 public:
  ResponseReply(Service& service, std::shared_ptr<http::Exchange> exchange, ResponseForm form);

  /// Begins a stream, once it is certain that there will be one.
  void open();

  void piece(size_t index, const Piece& piece) override;
  void ended(size_t index, const Ending& ending) override;
  void failed(int status, const std::string& message) override;

 private:
  struct Item {
    ChatDelta::Kind kind = ChatDelta::Kind::Content;  // CallArguments for a call
    std::string id;
    std::string text;  // of a call: its arguments
    std::string name{}, call_id{};
    Json json(const char* status) const;
    Json part() const;
  };

  Json response(const char* status, Json output) const;
  void add(const ChatDelta& delta);
  /// Adds an item, which ends the one before it.
  void begin_item(Item item);
  void end_item(const char* status);
  /// Fields of an event about the last item.
  Json about_item(Json fields) const;
  void send(const char* type, const Json& fields);

  Service& service_;
  std::shared_ptr<http::Exchange> exchange_;
  ResponseForm form_;
  std::string id_;
  int64_t created_;
  std::optional<ChatAnswerStream> parts_;  // where the form has a format
  std::optional<Item> item_;               // that has begun and not ended
  std::vector<ChatDelta> late_;            // words behind calls
  Json output_ = Json::array();            // items that have ended
  int64_t sequence_ = 0;
  std::once_flag opened_;
  std::shared_ptr<EventStream> stream_;
};

}  // namespace tidal::server
