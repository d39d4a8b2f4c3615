#include "server/event_stream.h"

namespace tidal::server {

constexpr std::chrono::seconds kQuiet{5};

EventStream::EventStream(std::shared_ptr<http::Exchange> exchange) : exchange_(std::move(exchange)) {
  // Proxies would hold the events back.
  exchange_->begin(200, "text/event-stream", {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}});
  exchange_->write(": the answer follows\n\n");
}

void EventStream::send(const Json& data, std::string_view event) {
  std::string text;
  if (!event.empty()) text.append("event: ").append(event).append("\n");
  text.append("data: ").append(dump(data)).append("\n\n");
  const std::lock_guard lock(mutex_);
  last_ = Clock::now();
  if (!ended_) exchange_->write(std::move(text));
}

void EventStream::end(bool done) {
  const std::lock_guard lock(mutex_);
  if (ended_) return;
  ended_ = true;
  if (done) exchange_->write("data: [DONE]\n\n");
  exchange_->end();
}

void EventStream::comment_if_quiet() {
  const std::lock_guard lock(mutex_);
  if (ended_ || Clock::now() - last_ < kQuiet) return;
  last_ = Clock::now();
  exchange_->write(": still at it\n\n");
}

}  // namespace tidal::server
