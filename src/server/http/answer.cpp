#include "server/http/answer.h"

#include <fmt/format.h>

#include <iterator>
#include <utility>

namespace tidal::http {
namespace {

std::string_view reason(int status) {
  switch (status) {
    case 200: return "OK";
    case 201: return "Created";
    case 202: return "Accepted";
    case 204: return "No Content";
    case 304: return "Not Modified";
    case 400: return "Bad Request";
    case 401: return "Unauthorized";
    case 403: return "Forbidden";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 408: return "Request Timeout";
    case 409: return "Conflict";
    case 413: return "Content Too Large";
    case 415: return "Unsupported Media Type";
    case 417: return "Expectation Failed";
    case 422: return "Unprocessable Content";
    case 429: return "Too Many Requests";
    case 431: return "Request Header Fields Too Large";
    case 500: return "Internal Server Error";
    case 501: return "Not Implemented";
    case 503: return "Service Unavailable";
    case 505: return "HTTP Version Not Supported";
    default: return "";
  }
}

bool has_body(int status) { return status >= 200 && status != 204 && status != 304; }

/// A line break would let a value that came from outside add headers of its own.
void append_header(std::string& out, std::string_view name, std::string_view value) {
  const auto append = [&out](std::string_view text) {
    for (const char c : text) out += c == '\r' || c == '\n' || c == '\0' ? ' ' : c;
  };
  append(name);
  out += ": ";
  append(value);
  out += "\r\n";
}

}  // namespace

std::string answer_head(int status, std::string_view content_type, bool keep_alive, bool http10,
                        const Headers& headers) {
  std::string out = fmt::format("HTTP/1.1 {} {}\r\nServer: tidal\r\n", status, reason(status));
  if (!content_type.empty()) append_header(out, "Content-Type", content_type);
  if (!keep_alive) out += "Connection: close\r\n";
  if (keep_alive && http10) out += "Connection: keep-alive\r\n";
  for (const auto& [name, value] : headers) append_header(out, name, value);
  return out;
}

std::string whole_answer(int status, std::string_view content_type, std::string_view body, bool keep_alive, bool http10,
                         bool head_only, const Headers& headers) {
  std::string out = answer_head(status, content_type, keep_alive, http10, headers);
  if (has_body(status)) fmt::format_to(std::back_inserter(out), "Content-Length: {}\r\n", body.size());
  out += "\r\n";
  if (has_body(status) && !head_only) out += body;
  return out;
}

void Reply::wake(std::unique_lock<std::mutex> lock) {
  if (gone_ || woken_) return;
  woken_ = true;
  lock.unlock();
  wake_();
}

void Reply::finish() {
  stage_ = Stage::Complete;
  close_ = close_ || !terms_.keep_alive;
}

void Reply::add_headers(Headers headers) {
  const std::lock_guard lock(mutex_);
  added_ = with_added(std::move(headers));
}

Headers Reply::with_added(Headers headers) const {
  headers.insert(headers.end(), added_.begin(), added_.end());
  return headers;
}

void Reply::respond(int status, std::string_view content_type, std::string_view body, const Headers& headers) {
  std::function<void()> forgotten;  // destroyed behind the lock: it may hold the Exchange
  std::unique_lock lock(mutex_);
  if (stage_ != Stage::Nothing || gone_) return;
  forgotten = std::move(on_gone_);
  on_gone_ = nullptr;
  pending_ =
      whole_answer(status, content_type, body, terms_.keep_alive, terms_.http10, terms_.head_only, with_added(headers));
  unread_ += pending_.size();
  finish();
  wake(std::move(lock));
}

void Reply::begin(int status, std::string_view content_type, const Headers& headers) {
  std::unique_lock lock(mutex_);
  if (stage_ != Stage::Nothing || gone_) return;
  stage_ = Stage::Begun;
  if (terms_.http10) terms_.keep_alive = false;  // its end is the connection's
  pending_ = answer_head(status, content_type, terms_.keep_alive, terms_.http10, with_added(headers));
  close_ = !terms_.keep_alive;  // what the head says stays
  if (!terms_.http10) pending_ += "Transfer-Encoding: chunked\r\n";
  pending_ += "\r\n";
  unread_ += pending_.size();
  wake(std::move(lock));
}

void Reply::write(std::string_view piece) {
  std::unique_lock lock(mutex_);
  // An empty chunk would be the last.
  if (stage_ != Stage::Begun || gone_ || cut_off_ || terms_.head_only || piece.empty()) return;
  if (unread_ > terms_.most_unread) {
    cut_off_ = true;
    woken_ = false;  // it does not take() while it sends, which to this client it always does
    std::string().swap(pending_);
    return wake(std::move(lock));
  }
  const size_t before = pending_.size();
  if (terms_.http10) {
    pending_ += piece;
  } else {
    fmt::format_to(std::back_inserter(pending_), "{:x}\r\n", piece.size());
    pending_ += piece;
    pending_ += "\r\n";
  }
  unread_ += pending_.size() - before;
  wake(std::move(lock));
}

void Reply::end() {
  std::function<void()> forgotten;
  std::unique_lock lock(mutex_);
  if (stage_ != Stage::Begun || gone_ || cut_off_) return;
  forgotten = std::move(on_gone_);
  on_gone_ = nullptr;
  if (!terms_.http10 && !terms_.head_only) pending_ += "0\r\n\r\n";
  finish();
  wake(std::move(lock));
}

bool Reply::gone() const {
  const std::lock_guard lock(mutex_);
  return gone_ || cut_off_;
}

void Reply::on_gone(std::function<void()> call) {
  {
    const std::lock_guard lock(mutex_);
    if (stage_ == Stage::Complete) return;
    if (!gone_) {
      std::swap(on_gone_, call);
      return;
    }
  }
  call();
}

void Reply::abandon(std::string why) {
  std::function<void()> forgotten;
  std::unique_lock lock(mutex_);
  if (stage_ == Stage::Complete || stage_ == Stage::Failed || gone_ || cut_off_) return;
  forgotten = std::move(on_gone_);
  on_gone_ = nullptr;
  if (stage_ == Stage::Nothing) {
    stage_ = Stage::Failed;
    why_ = std::move(why);
  } else {
    stage_ = Stage::Complete;  // without the last chunk, so that the client sees that it has not got all
    close_ = true;
  }
  wake(std::move(lock));
}

Reply::Batch Reply::take() {
  const std::lock_guard lock(mutex_);
  woken_ = false;
  return {.bytes = std::exchange(pending_, {}),
          .complete = stage_ == Stage::Complete,
          .close = close_,
          .failed = stage_ == Stage::Failed};
}

void Reply::sent(size_t count) {
  const std::lock_guard lock(mutex_);
  unread_ -= count;
}

bool Reply::complete() const {
  const std::lock_guard lock(mutex_);
  return stage_ == Stage::Complete;
}

bool Reply::cut_off() const {
  const std::lock_guard lock(mutex_);
  return cut_off_;
}

void Reply::close_after() {
  const std::lock_guard lock(mutex_);
  if (stage_ == Stage::Nothing) terms_.keep_alive = false;
}

void Reply::fail(int status, std::string_view content_type, std::string_view body) {
  const std::lock_guard lock(mutex_);
  pending_ = whole_answer(status, content_type, body, terms_.keep_alive, terms_.http10, terms_.head_only, added_);
  unread_ += pending_.size();
  finish();
}

void Reply::lose() {
  std::function<void()> call;
  {
    const std::lock_guard lock(mutex_);
    gone_ = true;
    std::string().swap(pending_);
    call = std::exchange(on_gone_, nullptr);
  }
  if (call) call();
}

ReplyExchange::~ReplyExchange() { reply_->abandon("this request was given up"); }

void ReplyExchange::respond(int status, std::string_view content_type, std::string body, Headers headers) {
  reply_->respond(status, content_type, body, headers);
}

void ReplyExchange::begin(int status, std::string_view content_type, Headers headers) {
  reply_->begin(status, content_type, headers);
}

void ReplyExchange::write(std::string piece) { reply_->write(piece); }

}  // namespace tidal::http
