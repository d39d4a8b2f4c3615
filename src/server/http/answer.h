// Answers on their way from any thread to the one that has the socket.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "server/http/http_server.h"

namespace tidal::http {

/// Status line and headers up to the empty line. Content-Length is not among them.
std::string answer_head(int status, std::string_view content_type, bool keep_alive, bool http10,
                        const Headers& headers = {});
/// A whole answer; `body` is left out behind its length when the request was a HEAD.
std::string whole_answer(int status, std::string_view content_type, std::string_view body, bool keep_alive, bool http10,
                         bool head_only, const Headers& headers = {});

/// What an Exchange and its connection share: the bytes that are made and not yet sent.
class Reply {
 public:
  struct Terms {
    bool head_only = false;
    bool http10 = false;
    bool keep_alive = true;
    size_t most_unread = 0;  ///< bytes
  };
  /// `wake` makes the server's thread call take(). It is called by any thread, with no lock held, and once for
  /// all that a take() will find.
  Reply(const Terms& terms, std::function<void()> wake) : terms_(terms), wake_(std::move(wake)) {}

  // Of the Exchange, by any thread; see there.
  void add_headers(Headers headers);
  void respond(int status, std::string_view content_type, std::string_view body, const Headers& headers);
  void begin(int status, std::string_view content_type, const Headers& headers);
  void write(std::string_view piece);
  void end();
  bool gone() const;
  void on_gone(std::function<void()> call);
  /// No answer will come, or no more of it: take() says `failed` when none has begun. `why` is for the client.
  void abandon(std::string why);

  // Of the connection, by the server's thread.
  struct Batch {
    std::string bytes;
    bool complete = false;  ///< nothing comes behind these
    bool close = false;     ///< and the connection is at its end
    bool failed = false;    ///< there is no answer, see why()
  };
  Batch take();
  const std::string& why() const { return why_; }  ///< after Batch::failed
  /// This many bytes of a batch are on their way.
  void sent(size_t count);
  bool complete() const;
  bool cut_off() const;  ///< too much was left unread
  /// A head that is made from now on says that the connection is closed.
  void close_after();
  /// The answer that `failed` asked for.
  void fail(int status, std::string_view content_type, std::string_view body);
  /// The client has gone. Calls what on_gone() was given.
  void lose();

 private:
  enum class Stage { Nothing, Begun, Failed, Complete };

  Headers with_added(Headers headers) const;
  /// Ends the call of an Exchange: wakes the server's thread where it does not know yet.
  void wake(std::unique_lock<std::mutex> lock);
  void finish();

  mutable std::mutex mutex_;
  Terms terms_;
  Headers added_;
  const std::function<void()> wake_;
  std::function<void()> on_gone_;
  std::string pending_;
  std::string why_;
  size_t unread_ = 0;
  Stage stage_ = Stage::Nothing;
  bool close_ = false;
  bool woken_ = false;
  bool cut_off_ = false;
  bool gone_ = false;
};

/// The Exchange that a handler gets.
class ReplyExchange final : public Exchange {
 public:
  ReplyExchange(Request request, std::shared_ptr<Reply> reply)
      : request_(std::move(request)), reply_(std::move(reply)) {}
  ReplyExchange(const ReplyExchange&) = delete;
  ReplyExchange& operator=(const ReplyExchange&) = delete;
  ~ReplyExchange() override;
  const Request& request() const override { return request_; }
  void add_headers(Headers headers) override { reply_->add_headers(std::move(headers)); }
  void respond(int status, std::string_view content_type, std::string body, Headers headers) override;
  void begin(int status, std::string_view content_type, Headers headers) override;
  void write(std::string piece) override;
  void end() override { reply_->end(); }
  bool gone() const override { return reply_->gone(); }
  void on_gone(std::function<void()> call) override { reply_->on_gone(std::move(call)); }

 private:
  const Request request_;
  const std::shared_ptr<Reply> reply_;
};

}  // namespace tidal::http
