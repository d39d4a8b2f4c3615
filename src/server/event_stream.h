// Server-sent events: an answer that comes piece by piece.
#pragma once

#include <chrono>
#include <memory>
#include <mutex>
#include <string_view>

#include "server/http/http_server.h"
#include "server/json.h"

namespace tidal::server {

/// One answer's events. May be used by several threads. A client that waits is told so by comments, which clients pass
/// over: events without data would end some (openai 3.51), silence of minutes others.
class EventStream {
 public:
  /// Sends the headers and a comment.
  explicit EventStream(std::shared_ptr<http::Exchange> exchange);

  /// `data: JSON`, behind `event: NAME` unless it is "".
  void send(const Json& data, std::string_view event = "");
  /// Ends the answer, with `data: [DONE]` first where `done`.
  void end(bool done);
  /// A comment when nothing was sent for some seconds.
  void comment_if_quiet();

 private:
  using Clock = std::chrono::steady_clock;

  std::shared_ptr<http::Exchange> exchange_;
  std::mutex mutex_;
  Clock::time_point last_ = Clock::now();
  bool ended_ = false;
};

}  // namespace tidal::server
