#include "server/http/request_parser.h"

#include <fmt/core.h>

#include <algorithm>
#include <boost/beast/http/basic_parser.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/version.hpp>
#include <cstdint>
#include <optional>

namespace tidal::http {
namespace {

namespace beast = boost::beast;
using beast::error_code;

std::string_view view(beast::string_view text) { return {text.data(), text.size()}; }

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return out;
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

/// Nothing where an escape is not one, or is a NUL.
std::optional<std::string> percent_decoded(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      out += text[i];
      continue;
    }
    if (text.size() - i < 3) return std::nullopt;
    const int high = hex_digit(text[i + 1]);
    const int low = hex_digit(text[i + 2]);
    if (high < 0 || low < 0 || high + low == 0) return std::nullopt;
    out += static_cast<char>(high * 16 + low);
    i += 2;
  }
  return out;
}

/// Of a request line that Beast has refused for its version: whether it is one of HTTP, though not one we speak.
bool other_http_version(std::string_view bytes) {
  const std::string_view line = bytes.substr(0, bytes.find("\r\n"));
  const size_t at = line.rfind(' ');
  if (line.size() == bytes.size() || at == std::string_view::npos) return false;
  const std::string_view version = line.substr(at + 1);
  const auto digit = [](char c) { return c >= '0' && c <= '9'; };
  return version.size() == 8 && version.starts_with("HTTP/") && digit(version[5]) && version[6] == '.' &&
         digit(version[7]) && version != "HTTP/1.1" && version != "HTTP/1.0";
}

/// Whether these bytes of a body may be the beginning of its last chunk, which has five bytes at least. Beast asserts
/// that it is asked to go on with so many.
bool begins_last_chunk(std::string_view bytes) {
  const std::string_view size = bytes.substr(bytes.starts_with("\r\n") ? 2 : 0);
  return bytes.size() < 5 && size.starts_with('0');
}

}  // namespace

std::string_view Request::header(std::string_view name) const {
  const auto found =
      std::find_if(headers.begin(), headers.end(), [&](const auto& entry) { return entry.first == name; });
  return found == headers.end() ? std::string_view() : std::string_view(found->second);
}

class RequestParser::Fields : public beast::http::basic_parser<true> {
 public:
  Fields(size_t most_header, size_t most_body) : most_header_(most_header) {
    header_limit(static_cast<std::uint32_t>(std::min<size_t>(most_header, UINT32_MAX)));
    body_limit(most_body);
  }

  size_t put_bytes(std::string_view bytes) {
    size_t used = 0;
    while (used < bytes.size() && status_ == 0 && !is_done()) {
      const std::string_view rest = bytes.substr(used);
      const bool in_header = !is_header_done();
      if (!in_header && chunked() && begins_last_chunk(rest)) break;
      error_code error;
      const size_t count = put(boost::asio::const_buffer(rest.data(), rest.size()), error);
      used += count;
      if (in_header) header_bytes_ += count;
      if (error && error != beast::http::error::need_more) {
        refuse_for(error, rest);
      } else if (in_header && header_bytes_ + (is_header_done() ? 0 : rest.size() - count) > most_header_) {
        refuse(431, fmt::format("the headers are longer than {} bytes", most_header_));
      } else if (in_header && is_header_done()) {
        check_header();
      } else if (!in_header && count == 0) {
        check_chunk_line(rest);
      }
      if (error || count == 0) break;
    }
    return used;
  }

  void refuse(int status, std::string why) {
    status_ = status;
    why_ = std::move(why);
  }

  Request request_;
  int status_ = 0;
  std::string why_;
  bool http10_ = false;
  bool expects_continue_ = false;

 private:
  void refuse_for(error_code error, std::string_view bytes) {
    using Kind = beast::http::error;
    if (error == Kind::header_limit) {
      refuse(431, fmt::format("the headers are longer than {} bytes", most_header_));
    } else if (error == Kind::body_limit) {
      refuse(413, "the body is longer than this server takes");
    } else if (error == Kind::bad_version && other_http_version(bytes)) {
      refuse(505, "expected HTTP/1.1 or HTTP/1.0");
    } else {
      refuse(400, fmt::format("this is not HTTP: {}", error.message()));
    }
  }

  /// What Beast leaves to its user. Where the length of a body could be read in two ways there is no second request on
  /// the connection that could be trusted.
  void check_header() {
    in_header_ = false;
    const bool coded = !request_.header("transfer-encoding").empty();
    if (coded && (http10_ || !request_.header("content-length").empty())) {
      refuse(400, "Transfer-Encoding beside Content-Length, or in HTTP/1.0");
    } else if (coded && lower(request_.header("transfer-encoding")) != "chunked") {
      refuse(501, "expected no Transfer-Encoding but chunked");
    } else if (!target_.starts_with('/') && !(target_ == "*" && request_.method == "OPTIONS")) {
      refuse(400, "expected a target that begins with /");
    } else if (const std::string_view expected = request_.header("expect"); !expected.empty() && !http10_) {
      expects_continue_ = lower(expected) == "100-continue";
      if (!expects_continue_) refuse(417, "expected no Expect but 100-continue");
    }
    if (status_ != 0) return;
    const size_t question = target_.find('?');
    std::optional<std::string> path = percent_decoded(std::string_view(target_).substr(0, question));
    if (!path) return refuse(400, "the path has a % that is no escape, or the escape of a NUL");
    request_.path = std::move(*path);
    if (question != std::string::npos) request_.query = target_.substr(question + 1);
    target_ = {};
  }

  /// Beast waits for the end of such a line, wherever it may be.
  void check_chunk_line(std::string_view bytes) {
    const size_t end = bytes.find('\n');
    if (end != std::string_view::npos && (end == 0 || bytes[end - 1] != '\r')) {
      refuse(400, "the line before a chunk does not end in CR LF");
    } else if (bytes.size() > most_header_) {
      refuse(400,
             fmt::format("the line before a chunk, or what follows the last, is longer than {} bytes", most_header_));
    }
  }

  void on_request_impl(beast::http::verb, beast::string_view method, beast::string_view target, int version,
                       error_code&) override {
    request_.method = view(method);
    target_ = view(target);
    http10_ = version < 11;
  }
  void on_field_impl(beast::http::field, beast::string_view name, beast::string_view value, error_code&) override {
    // Before Boost 1.90 trailers come here, too: nobody asked for them, and they must not pass for headers.
    if (in_header_) request_.headers.emplace_back(lower(view(name)), view(value));
  }
#if BOOST_VERSION >= 109000
  void on_trailer_field_impl(beast::http::field, beast::string_view, beast::string_view, error_code&) override {}
#endif
  void on_header_impl(error_code&) override {}
  void on_body_init_impl(const boost::optional<std::uint64_t>&, error_code&) override {}
  size_t on_body_impl(beast::string_view body, error_code&) override {
    request_.body.append(body.data(), body.size());
    return body.size();
  }
  void on_chunk_header_impl(std::uint64_t, beast::string_view, error_code&) override {}
  size_t on_chunk_body_impl(std::uint64_t, beast::string_view body, error_code&) override {
    request_.body.append(body.data(), body.size());
    return body.size();
  }
  void on_finish_impl(error_code&) override {}
  void on_response_impl(int, beast::string_view, int, error_code&) override {}

  const size_t most_header_;
  size_t header_bytes_ = 0;
  bool in_header_ = true;
  std::string target_;
};

RequestParser::RequestParser(size_t most_header, size_t most_body)
    : fields_(std::make_unique<Fields>(most_header, most_body)) {}
RequestParser::~RequestParser() = default;

size_t RequestParser::put(std::string_view bytes) { return fields_->put_bytes(bytes); }
bool RequestParser::header_done() const { return fields_->is_header_done(); }
bool RequestParser::done() const { return fields_->status_ == 0 && fields_->is_done(); }
int RequestParser::refused() const { return fields_->status_; }
const std::string& RequestParser::refusal() const { return fields_->why_; }
bool RequestParser::keep_alive() const { return fields_->keep_alive(); }
bool RequestParser::http10() const { return fields_->http10_; }
bool RequestParser::expects_continue() const { return fields_->expects_continue_; }
const std::string& RequestParser::method() const { return fields_->request_.method; }
Request RequestParser::take() { return std::move(fields_->request_); }

}  // namespace tidal::http
