// Bytes into requests, and into the statuses that refuse them. Knows no sockets.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "server/http/http_server.h"

namespace tidal::http {

/// One request, from its first byte on. Whatever the bytes are, it keeps no more than most_header + most_body of them.
class RequestParser {
 public:
  /// The limits are in bytes, as in Options.
  RequestParser(size_t most_header, size_t most_body);
  ~RequestParser();

  /// Takes bytes and returns how many it has used. The others come again in the next call, with more behind them; those
  /// behind the end of the request are never used. Not to be called once done() or refused().
  size_t put(std::string_view bytes);
  bool header_done() const;
  bool done() const;
  /// The status that refuses this request, 0 for none; then refusal() says why.
  int refused() const;
  const std::string& refusal() const;

  // After header_done():
  bool keep_alive() const;  ///< the client would go on with this connection
  bool http10() const;
  bool expects_continue() const;  ///< it waits for a word before it sends the body

  /// The method as far as it is known, "" before.
  const std::string& method() const;
  /// After done(), once.
  Request take();

 private:
  class Fields;
  std::unique_ptr<Fields> fields_;
};

}  // namespace tidal::http
