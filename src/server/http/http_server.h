// HTTP/1.1 over sockets: requests in, answers out. Knows nothing of what they mean.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tidal::http {

using Headers = std::vector<std::pair<std::string, std::string>>;

struct Request {
  std::string method;  ///< GET, POST, ... A HEAD is answered like a GET: its body is left out when it is sent
  std::string path;    ///< of the target, percent-decoded, without the query
  std::string query;   ///< behind the '?', as it came
  Headers headers;     ///< in their order, names in lower case
  std::string body;

  /// The first header of this name (in lower case), "" without one.
  std::string_view header(std::string_view name) const;
};

/// One request's way back to its client. May be used by any thread, and outlive the connection: what is written to a
/// client that has gone is dropped.
class Exchange {
 public:
  virtual ~Exchange() = default;
  virtual const Request& request() const = 0;
  /// Headers that the answer will have beside its own, whatever it is. Before respond() and begin().
  virtual void add_headers(Headers headers) = 0;
  /// The whole answer. Once, and not beside begin(): what comes after a complete answer is dropped. An Exchange that is
  /// destroyed without one is answered with 500; one that is destroyed between begin() and end() closes the connection.
  virtual void respond(int status, std::string_view content_type, std::string body, Headers headers = {}) = 0;
  /// Headers of an answer that comes piece by piece (chunked), sent at once.
  virtual void begin(int status, std::string_view content_type, Headers headers = {}) = 0;
  /// A piece of it. Never blocks. A client that has left more than Options::most_unread bytes unread by then is cut
  /// off.
  virtual void write(std::string piece) = 0;
  /// The end of it.
  virtual void end() = 0;
  /// True once the client has closed the connection, or was cut off.
  virtual bool gone() const = 0;
  /// Called once when that happens, by the server's thread; at once when it has, by the caller's. Not after the answer
  /// is complete. `call` may hold the Exchange.
  virtual void on_gone(std::function<void()> call) = 0;
};

struct Options {
  std::string host = "127.0.0.1";
  int port = 8080;                               ///< 0: one that is free
  size_t most_body = size_t{32} << 20;           ///< bytes; more is answered with 413
  size_t most_header = size_t{16} << 10;         ///< bytes of all headers; more is answered with 431
  size_t most_connections = 10000;               ///< those beyond are answered with 503
  size_t most_unread = size_t{4} << 20;          ///< bytes that a slow reader may leave behind
  std::chrono::milliseconds header_time{30000};  ///< for the headers of a request, from its first byte on
  std::chrono::milliseconds body_time{60000};    ///< without a byte of the body
  std::chrono::milliseconds idle_time{120000};   ///< between two requests of a connection; without taking of an answer
};

/// Serves until it is stopped. Errors that HTTP itself has (400, 408, 413, 417, 431, 501, 505; 500 and 503) are
/// answered here, with the body that `error_body` makes of status and message (JSON).
class Server {
 public:
  using Handler = std::function<void(std::shared_ptr<Exchange>)>;
  using ErrorBody = std::function<std::string(int status, std::string_view message)>;

  /// Listens from now on. `handler` is called by the server's one thread, for every whole request, and must not block;
  /// what it throws becomes a 500. `error_body` is called by the same thread. Throws Error `HOST:PORT: ...` when that
  /// address cannot be had.
  Server(const Options& options, Handler handler, ErrorBody error_body);
  /// Closes every connection.
  ~Server();

  int port() const;
  /// Takes no new connections and no new requests (those get 503), waits up to `drain` for answers to requests that it
  /// has taken, then closes every connection. Not to be called by the server's thread.
  void stop(std::chrono::milliseconds drain);
  /// Those open now, without the ones that are only told 503.
  size_t connections() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tidal::http
