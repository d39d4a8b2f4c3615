// What all connections of a server have in common, and its one thread runs.
#pragma once

#include <array>
#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_set>

#include "server/http/http_server.h"

namespace tidal::http {

class Connection;

/// Exchanges keep it alive, so that they may outlive the server. All but `io` is the server's thread's.
struct Loop : std::enable_shared_from_this<Loop> {
  boost::asio::io_context io{1};
  Options options;
  Server::Handler handler;
  Server::ErrorBody error_body;
  std::unordered_set<std::shared_ptr<Connection>> connections;
  std::atomic<size_t> admitted = 0;  ///< connections without those that are only told 503
  std::array<char, 64 << 10> input;  ///< what a connection has just read: idle ones need no buffer of their own
  bool draining = false;             ///< no new requests
  std::function<void()> less_to_do;  ///< called while draining, whenever a connection has done its work

  /// `error_body`, whatever it does.
  std::string error(int status, std::string_view message) const {
    try {
      return error_body(status, message);
    } catch (...) {
      return "{}";
    }
  }
};

inline constexpr std::string_view kErrorType = "application/json";

}  // namespace tidal::http
