#include "server/http/connection.h"

#include <poll.h>

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/post.hpp>
#include <boost/system/error_code.hpp>
#include <exception>
#include <utility>

namespace tidal::http {
namespace {

using boost::system::error_code;
using std::chrono::milliseconds;

/// What a client may send ahead of an answer, in bytes. The rest waits in the kernels, and before it has come through,
/// they do not say that the client has closed.
constexpr size_t kMostAhead = size_t{64} << 10;
/// How long a connection is kept after our last word, so that the client can read it before a reset takes it away.
constexpr milliseconds kLingerTime{2000};

}  // namespace

Connection::Connection(Loop& loop, boost::asio::ip::tcp::socket socket)
    : loop_(loop), socket_(std::move(socket)), timer_(loop.io) {}

/// An exception, for want of memory, ends this connection and not the others.
template <typename Step>
void Connection::guarded(Step step) {
  if (phase_ == Phase::Closed) return;
  try {
    step();
  } catch (...) {
    close();
  }
}

void Connection::start(bool admitted) {
  guarded([&] {
    admitted_ = admitted;
    if (admitted_) ++loop_.admitted;
    error_code ignored;
    socket_.non_blocking(true, ignored);
    socket_.set_option(boost::asio::ip::tcp::no_delay(true), ignored);
    socket_.set_option(boost::asio::socket_base::keep_alive(true), ignored);
    if (!admitted_) return refuse(503, "there are too many connections");
    arm(loop_.options.idle_time);
    wait_readable();
  });
}

void Connection::say_close() {
  if (reply_) reply_->close_after();
}

void Connection::drain() {
  guarded([&] {
    if (phase_ != Phase::Idle) return;
    on_readable();  // a request may have come already, and gets its 503
    if (phase_ == Phase::Idle) close();
  });
}

void Connection::close() {
  if (phase_ == Phase::Closed) return;
  phase_ = Phase::Closed;
  const std::shared_ptr<Connection> self = shared_from_this();
  loop_.connections.erase(self);
  if (admitted_) --loop_.admitted;
  error_code ignored;
  socket_.close(ignored);
  timer_.cancel();
  if (loop_.less_to_do) loop_.less_to_do();
  try {
    if (const std::shared_ptr<Reply> reply = std::exchange(reply_, nullptr)) reply->lose();
  } catch (...) {  // NOLINT(bugprone-empty-catch): what on_gone() was given is not this thread's to fail of
  }
}

void Connection::wait_readable() {
  if (waiting_ || input_ended_ || phase_ == Phase::Closed || input_full()) return;
  waiting_ = true;
  socket_.async_wait(boost::asio::ip::tcp::socket::wait_read, [self = shared_from_this()](error_code error) {
    self->waiting_ = false;
    self->guarded([&] { error ? self->close() : self->on_readable(); });
  });
}

void Connection::on_readable() {
  error_code error;
  const size_t count = socket_.read_some(boost::asio::buffer(loop_.input), error);
  if (error == boost::asio::error::would_block || error == boost::asio::error::interrupted) return wait_readable();
  if (error == boost::asio::error::eof) return on_end_of_input();
  if (error) return close();
  if (phase_ != Phase::Lingering) input_.append(loop_.input.data(), count);
  if (phase_ == Phase::Body) arm(loop_.options.body_time);
  if (phase_ != Phase::Answering) parse();
  if (input_full() && phase_ == Phase::Answering) arm_watch();
  wait_readable();
}

/// A client that has sent its last byte may still read. Nobody waits for one that does so before the answer is made: it
/// is what a client does that has gone.
void Connection::on_end_of_input() {
  input_ended_ = true;
  if (phase_ == Phase::Lingering && writing_) return;
  if (phase_ != Phase::Answering || !reply_->complete()) close();
}

void Connection::parse() {
  while (!input_.empty() && (phase_ == Phase::Idle || phase_ == Phase::Header || phase_ == Phase::Body)) {
    if (phase_ == Phase::Idle) {
      while (input_.starts_with("\r\n")) input_.erase(0, 2);  // some clients end a body with one more line
      if (input_.empty() || input_ == "\r") return;
      phase_ = Phase::Header;
      parser_ = std::make_unique<RequestParser>(loop_.options.most_header, loop_.options.most_body);
      arm(loop_.options.header_time);
    }
    const size_t used = parser_->put(input_);
    input_.erase(0, used);
    if (parser_->refused() != 0) return refuse(parser_->refused(), parser_->refusal());
    if (parser_->done()) return dispatch();
    if (phase_ == Phase::Header && parser_->header_done()) {
      phase_ = Phase::Body;
      arm(loop_.options.body_time);
      if (parser_->expects_continue() && input_.empty()) send("HTTP/1.1 100 Continue\r\n\r\n");
    }
    if (used == 0) return;
  }
}

void Connection::dispatch() {
  if (loop_.draining) return refuse(503, "the server is stopping");
  phase_ = Phase::Answering;
  timer_.cancel();
  watched_ = false;
  Request request = parser_->take();
  const Reply::Terms terms{.head_only = request.method == "HEAD",
                           .http10 = parser_->http10(),
                           .keep_alive = parser_->keep_alive(),
                           .most_unread = loop_.options.most_unread};
  parser_.reset();
  if (input_.empty()) std::string().swap(input_);
  // By way of weak pointers: what is left in the queue of a server that has stopped must not keep the queue alive.
  reply_ = std::make_shared<Reply>(terms, [loop = loop_.shared_from_this(), connection = weak_from_this()] {
    boost::asio::post(loop->io, [connection] {
      if (const std::shared_ptr<Connection> self = connection.lock()) self->guarded([&] { self->flush(); });
    });
  });
  // Kept here until it is known what became of it: given up and failed are not the same.
  auto exchange = std::make_shared<ReplyExchange>(std::move(request), reply_);
  try {
    loop_.handler(exchange);
  } catch (const std::exception& error) {
    reply_->abandon(error.what());
  } catch (...) {
    reply_->abandon("this request could not be answered");
  }
  exchange.reset();
  flush();
  if (input_ended_ && reply_ && !reply_->complete()) return close();
  wait_readable();
}

void Connection::refuse(int status, std::string_view message) {
  const bool head_only = parser_ && parser_->method() == "HEAD";
  std::string answer = whole_answer(status, kErrorType, loop_.error(status, message), false, false, head_only);
  phase_ = Phase::Lingering;
  close_after_ = true;
  parser_.reset();
  std::string().swap(input_);
  arm(kLingerTime);
  send(std::move(answer));
  wait_readable();
}

void Connection::flush() {
  if (!reply_) return;
  if (reply_->cut_off()) return close();
  if (writing_) return;
  Reply::Batch batch = reply_->take();
  if (batch.failed) {
    reply_->fail(500, kErrorType, loop_.error(500, reply_->why()));
    batch = reply_->take();
  }
  last_ = batch.complete;
  close_after_ = batch.close;
  if (!batch.bytes.empty()) {
    reply_bytes_ = batch.bytes.size();
    send(std::move(batch.bytes));
  } else if (last_) {
    next_request();
  }
}

void Connection::send(std::string bytes) {
  if (writing_) {
    queued_ += bytes;
    return;
  }
  output_ = std::move(bytes);
  sent_ = 0;
  writing_ = true;
  progress_ = Clock::now();
  write_some();
}

void Connection::write_some() {
  if (phase_ == Phase::Answering) arm_watch();
  socket_.async_write_some(boost::asio::buffer(output_) + sent_,
                           [self = shared_from_this()](error_code error, size_t count) {
                             self->guarded([&] { error ? self->close() : self->on_written(count); });
                           });
}

void Connection::on_written(size_t count) {
  progress_ = Clock::now();
  sent_ += count;
  if (reply_ && reply_bytes_ > 0) {
    reply_->sent(count);
    reply_bytes_ -= count;
  }
  if (sent_ < output_.size()) return write_some();
  writing_ = false;
  std::string().swap(output_);
  if (!queued_.empty()) return send(std::exchange(queued_, {}));
  if (phase_ == Phase::Lingering) return linger();
  if (!reply_) return;
  if (std::exchange(last_, false)) return next_request();
  flush();
}

void Connection::next_request() {
  reply_.reset();
  if (loop_.less_to_do) loop_.less_to_do();
  if (close_after_ || (input_.empty() && (input_ended_ || loop_.draining))) return linger();
  phase_ = Phase::Idle;
  watched_ = false;
  arm(loop_.options.idle_time);
  parse();
  const bool unfinished = phase_ == Phase::Idle || phase_ == Phase::Header || phase_ == Phase::Body;
  if (input_ended_ && unfinished) return close();
  wait_readable();
}

/// Says that there is nothing more to come, and waits for the client to close: a close with something unread is a
/// reset, which can take the answer away from the client.
void Connection::linger() {
  phase_ = Phase::Lingering;
  std::string().swap(input_);
  error_code ignored;
  socket_.shutdown(boost::asio::ip::tcp::socket::shutdown_send, ignored);
  if (input_ended_) return close();
  arm(kLingerTime);
  if (loop_.less_to_do) loop_.less_to_do();
  wait_readable();
}

void Connection::arm(milliseconds time) {
  timer_.expires_after(time);
  timer_.async_wait([self = shared_from_this()](error_code error) {
    // One that was set anew while this call stood in the queue has another to come.
    if (error || self->timer_.expiry() > Clock::now()) return;
    self->guarded([&] { self->on_timer(); });
  });
}

/// Looks after a client that takes nothing, or whose bytes we have stopped to read, while it is answered.
void Connection::arm_watch() {
  if (watched_) return;
  watched_ = true;
  arm(std::clamp(loop_.options.idle_time / 4, milliseconds(10), milliseconds(1000)));
}

void Connection::on_timer() {
  switch (phase_) {
    case Phase::Idle:
    case Phase::Lingering: return close();
    case Phase::Header: return refuse(408, "the headers took too long");
    case Phase::Body: return refuse(408, "the body took too long");
    case Phase::Closed: return;
    case Phase::Answering: break;
  }
  watched_ = false;
  if (writing_ && Clock::now() - progress_ > loop_.options.idle_time) return close();
  if (input_full() && !reply_->complete() && peer_closed()) return close();
  if (writing_ || input_full()) arm_watch();
}

bool Connection::input_full() const { return phase_ == Phase::Answering && input_.size() >= kMostAhead; }

bool Connection::peer_closed() {
  pollfd descriptor{.fd = socket_.native_handle(), .events = POLLRDHUP, .revents = 0};
  return ::poll(&descriptor, 1, 0) > 0;
}

}  // namespace tidal::http
