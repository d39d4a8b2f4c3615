// One client's connection: requests one after the other, each answered before the next is looked at.
#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <chrono>
#include <memory>
#include <string>

#include "server/http/answer.h"
#include "server/http/loop.h"
#include "server/http/request_parser.h"

namespace tidal::http {

/// Lives in Loop::connections until it is closed. Everything is called by the server's thread.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(Loop& loop, boost::asio::ip::tcp::socket socket);
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  /// Serves it. One that is not `admitted` gets 503.
  void start(bool admitted);
  /// The answer being made will say that the connection closes, where its head is not made yet.
  void say_close();
  /// There will be no more requests: closes it if it is idle; else it closes when its answer is complete.
  void drain();
  /// An answer is being made or sent.
  bool busy() const { return reply_ != nullptr || writing_; }
  /// Closes it at once. Whoever makes an answer is told that the client has gone.
  void close();

 private:
  enum class Phase { Idle, Header, Body, Answering, Lingering, Closed };
  using Clock = std::chrono::steady_clock;

  template <typename Step>
  void guarded(Step step);

  void wait_readable();
  void on_readable();
  void on_end_of_input();
  void parse();
  void dispatch();
  void refuse(int status, std::string_view message);

  void flush();
  void send(std::string bytes);
  void write_some();
  void on_written(size_t count);
  void next_request();
  void linger();

  void arm(std::chrono::milliseconds time);
  void arm_watch();
  void on_timer();
  bool input_full() const;
  bool peer_closed();

  Loop& loop_;
  boost::asio::ip::tcp::socket socket_;
  boost::asio::steady_timer timer_;
  Phase phase_ = Phase::Idle;
  bool admitted_ = false;
  bool waiting_ = false;  ///< for something to read
  bool writing_ = false;  ///< output_ belongs to the socket
  bool watched_ = false;  ///< timer_ runs for Answering
  bool input_ended_ = false;
  std::string input_;   ///< read and not yet used
  std::string output_;  ///< being sent, from sent_ on
  std::string queued_;  ///< to be sent behind it
  size_t sent_ = 0;
  Clock::time_point progress_;  ///< when the socket last took something
  size_t reply_bytes_ = 0;      ///< of those being sent, how many the reply counts as unread
  bool last_ = false;           ///< the reply is complete with what is being sent
  bool close_after_ = false;
  std::unique_ptr<RequestParser> parser_;
  std::shared_ptr<Reply> reply_;
};

}  // namespace tidal::http
