// The server: which endpoint answers a request, who may ask, and on which thread.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "server/http/http_server.h"
#include "server/service.h"

namespace tidal::server {

struct ServerOptions {
  http::Options http;
  std::vector<std::string> api_keys;            ///< any of them opens every endpoint; none: all are open
  std::vector<std::string> allowed_origins;     ///< of web pages elsewhere that may ask, such as https://chat.example
  std::function<void(const std::string&)> log;  ///< a line a request, without what it says; may be empty
};

/// Listens at once, so that clients that come while the model is loaded are told so (503), and answers once it is given
/// a service.
class Server {
 public:
  /// Throws Error as http::Server does.
  explicit Server(ServerOptions options);
  ~Server();

  int port() const;
  /// From now on requests are answered. The service must outlive the server.
  void serve(Service& service);
  /// No new requests; answers that have begun get `drain` to end.
  void stop(std::chrono::milliseconds drain);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tidal::server
