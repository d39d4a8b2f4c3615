// A client of plain sockets, which does what it is told and knows no more of HTTP than where an answer ends.
#pragma once

#include <chrono>
#include <map>
#include <string>
#include <string_view>

namespace tidal::test {

struct HttpAnswer {
  int status = 0;  ///< 0: none came, or not a whole one
  std::string version;
  std::map<std::string, std::string> headers;  ///< names in lower case
  std::string body;                            ///< without the chunks' lines

  std::string header(const std::string& name) const;
};

/// A connection to 127.0.0.1 (or to `host`, an address). Every wait ends after a few seconds.
class Client {
 public:
  explicit Client(int port, const std::string& host = "127.0.0.1", int receive_buffer = 0);
  Client(Client&& other) noexcept;
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;
  Client& operator=(Client&&) = delete;
  ~Client();

  bool connected() const { return socket_ >= 0; }
  /// False where the server has closed. Gives up when it takes nothing for `time`.
  bool send(std::string_view bytes, std::chrono::milliseconds time = std::chrono::seconds(5));
  /// One read of what is there, "" at the end or after `time`.
  std::string receive(std::chrono::milliseconds time = std::chrono::seconds(5));
  /// Everything up to `end`, which stays in front; "" without it.
  std::string receive_until(std::string_view end);
  /// The next whole answer. `head`: it has no body whatever it says.
  HttpAnswer answer(bool head = false);
  /// True if the server closes within `time`; what comes before is thrown away.
  bool closed(std::chrono::milliseconds time = std::chrono::seconds(5));
  /// True if the end came as a reset, of which reading may know nothing when sending has met it.
  bool reset() const { return reset_; }
  void half_close();
  void close();

 private:
  bool more(std::chrono::milliseconds time = std::chrono::seconds(5));

  int socket_ = -1;
  bool reset_ = false;
  std::string input_;
};

}  // namespace tidal::test
