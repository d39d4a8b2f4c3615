#include "server/server.h"

#include <atomic>
#include <new>

#include "core/error.h"
#include "server/access.h"
#include "server/api/apis.h"
#include "server/api/request.h"
#include "server/error.h"
#include "server/page/web_page.h"
#include "server/worker.h"

namespace tidal::server {
namespace {

constexpr size_t kMostTasks = 1024;
constexpr const char* kJson = "application/json";

struct Endpoint {
  const char* method;
  const char* path;
  void (*answer)(Service&, const ExchangePointer&);
  bool text;  ///< reads or writes text, so a worker does it
};

constexpr Endpoint kEndpoints[] = {
    {"POST", "/v1/chat/completions", chat_completions, true},
    {"POST", "/chat/completions", chat_completions, true},
    {"POST", "/v1/completions", completions, true},
    {"POST", "/completions", native_completions, true},
    {"POST", "/completion", native_completions, true},
    {"POST", "/v1/chat/completions/input_tokens", count_chat_tokens, true},
    {"POST", "/chat/completions/input_tokens", count_chat_tokens, true},
    {"POST", "/v1/messages", messages, true},
    {"POST", "/v1/messages/count_tokens", count_tokens, true},
    {"POST", "/v1/responses", responses, true},
    {"POST", "/responses", responses, true},
    {"GET", "/v1/models", models, false},
    {"GET", "/models", models, false},
    {"POST", "/tokenize", tokenize, true},
    {"POST", "/detokenize", detokenize, true},
    {"POST", "/apply-template", apply_template, true},
    {"GET", "/props", props, false},
    {"GET", "/slots", slots, false},
    {"GET", "/metrics", metrics, false},
};

/// Answers by what `work` does, and with an error by what it throws.
template <typename Work>
void answer(http::Exchange& exchange, const Work& work) {
  const auto complain = [&](int status, const std::string& message) {
    exchange.respond(status, kJson, error_body(status, message));
  };
  try {
    work();
  } catch (const ApiError& error) {
    http::Headers headers;
    if (error.status() == 429) headers.emplace_back("Retry-After", kRetryAfter);
    if (error.status() == 401) headers.emplace_back("WWW-Authenticate", "Bearer");
    const std::string body = error_body(error.status(), error.what(), error.type(), error.param(), error.numbers());
    exchange.respond(error.status(), kJson, body, headers);
  } catch (const Error& error) {
    complain(400, error.what());
  } catch (const std::bad_alloc&) {
    complain(500, "out of memory");
  } catch (const std::exception& error) {
    complain(500, error.what());
  }
}

}  // namespace

struct Server::State {
  explicit State(ServerOptions given)
      : options(std::move(given)),
        http(
            options.http, [this](ExchangePointer exchange) { handle(std::move(exchange)); },
            [](int status, std::string_view message) { return error_body(status, std::string(message)); }) {}

  void handle(ExchangePointer exchange) {
    const http::Request& request = exchange->request();
    if (options.log) options.log(fmt::format("{} {}", request.method, request.path));
    answer(*exchange, [&] { route(exchange); });
  }

  void route(const ExchangePointer& exchange) {
    const http::Request& request = exchange->request();
    check_site(request, options.http.host, options.allowed_origins);
    if (http::Headers headers = page_headers(request, options.allowed_origins); !headers.empty()) {
      exchange->add_headers(std::move(headers));
      // Browsers ask without the key.
      if (is_preflight(request)) return exchange->respond(204, "", "");
    }
    const bool reads = request.method == "GET" || request.method == "HEAD";
    if (reads && (request.path == "/health" || request.path == "/v1/health")) return health(exchange);
    if (reads && request.path == "/") return web_page(exchange);
    check_key(request, options.api_keys);
    bool known = request.path == "/";
    for (const Endpoint& endpoint : kEndpoints) {
      if (request.path != endpoint.path) continue;
      known = true;
      if (request.method == endpoint.method || (reads && endpoint.method == std::string_view("GET"))) {
        return serve(endpoint, exchange);
      }
    }
    if (known) {
      throw ApiError(405, "invalid_request_error", fmt::format("{} does not take {}", request.path, request.method));
    }
    throw ApiError(404, "not_found_error", fmt::format("there is no endpoint {}", request.path.substr(0, 100)));
  }

  Service& loaded() const {
    if (!service) throw ApiError(503, "unavailable_error", "the model is being loaded");
    return *service;
  }

  void health(const ExchangePointer& exchange) const {
    loaded();
    respond(exchange, {{"status", "ok"}});
  }

  void serve(const Endpoint& endpoint, const ExchangePointer& exchange) {
    Service& service = loaded();
    if (!endpoint.text) return endpoint.answer(service, exchange);
    const bool taken = worker.post([endpoint, exchange, &service] {
      if (!exchange->gone()) answer(*exchange, [&] { endpoint.answer(service, exchange); });
    });
    if (!taken) refuse_for_now();
  }

  ServerOptions options;
  std::atomic<Service*> service{nullptr};
  Worker worker{kMostTasks};
  http::Server http;  // last: it calls the others
};

Server::Server(ServerOptions options) : state_(std::make_unique<State>(std::move(options))) {}
Server::~Server() = default;

int Server::port() const { return state_->http.port(); }
void Server::serve(Service& service) { state_->service = &service; }
void Server::stop(std::chrono::milliseconds drain) { state_->http.stop(drain); }

}  // namespace tidal::server
