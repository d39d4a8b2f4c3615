#include "server/access.h"

#include <algorithm>
#include <string_view>

#include "server/error.h"

namespace tidal::server {
namespace {

bool equal_in_constant_time(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  unsigned difference = 0;
  for (size_t i = 0; i < a.size(); ++i) difference |= static_cast<unsigned char>(a[i] ^ b[i]);
  return difference == 0;
}

/// "localhost:8080" -> "localhost", "[::1]:8080" -> "::1"
std::string host_of(std::string_view authority) {
  if (authority.starts_with('[')) return std::string(authority.substr(1, authority.find(']') - 1));
  return std::string(authority.substr(0, authority.rfind(':')));
}

bool is_loopback(const std::string& host) {
  return host == "localhost" || host == "::1" ||
         (host.starts_with("127.") && host.find_first_not_of("0123456789.") == std::string::npos);
}

/// Whether the request has an Origin that is among `allowed`.
bool is_of_allowed_page(const http::Request& request, const std::vector<std::string>& allowed) {
  return std::find(allowed.begin(), allowed.end(), request.header("origin")) != allowed.end();
}

}  // namespace

void check_key(const http::Request& request, const std::vector<std::string>& keys) {
  if (keys.empty()) return;
  constexpr std::string_view kBearer = "Bearer ";
  std::string_view given = request.header("authorization");
  given = given.starts_with(kBearer) ? given.substr(kBearer.size()) : request.header("x-api-key");
  bool known = false;
  for (const std::string& key : keys) known |= equal_in_constant_time(given, key);
  if (!known) throw ApiError(401, "authentication_error", "the API key is wrong or missing");
}

void check_site(const http::Request& request, const std::string& listening, const std::vector<std::string>& allowed) {
  const std::string_view host = request.header("host"), origin = request.header("origin");
  if (is_loopback(listening) && !host.empty() && !is_loopback(host_of(host))) {
    throw ApiError(403, "permission_error",
                   "the Host header names another machine; this server answers on loopback addresses alone");
  }
  if (origin.empty() || is_of_allowed_page(request, allowed)) return;
  const size_t scheme = origin.find("://");
  const bool own = scheme != std::string_view::npos && origin.substr(scheme + 3) == host;
  if (!own) {
    throw ApiError(403, "permission_error",
                   "a web page of another site asks; --allow-origin lets the pages of an origin in");
  }
}

bool is_preflight(const http::Request& request) {
  return request.method == "OPTIONS" && !request.header("origin").empty() &&
         !request.header("access-control-request-method").empty();
}

http::Headers page_headers(const http::Request& request, const std::vector<std::string>& allowed) {
  const std::string_view origin = request.header("origin");
  if (origin.empty() || !is_of_allowed_page(request, allowed)) return {};
  http::Headers headers{{"Access-Control-Allow-Origin", std::string(origin)}, {"Vary", "Origin"}};
  if (is_preflight(request)) {
    headers.emplace_back("Access-Control-Allow-Methods", "GET, POST");
    headers.emplace_back("Access-Control-Allow-Headers", "*, Authorization");  // the star does not stand for that one
    headers.emplace_back("Access-Control-Max-Age", "600");
  }
  return headers;
}

}  // namespace tidal::server
