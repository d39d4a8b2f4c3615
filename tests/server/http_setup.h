// A server with a handler for tests, and what tests ask it.
#pragma once

#include <fmt/core.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "server/client.h"
#include "server/http/http_server.h"

namespace tidal::test {

using namespace std::literals;

/// Waits for what other threads do; false after some seconds.
template <typename Condition>
bool soon(Condition condition, std::chrono::milliseconds time = 5s) {
  const auto until = std::chrono::steady_clock::now() + time;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > until) return false;
    std::this_thread::sleep_for(2ms);
  }
  return true;
}

class HttpTest : public testing::Test {
 protected:
  using ExchangePtr = std::shared_ptr<http::Exchange>;

  void TearDown() override {
    server_.reset();
    forget();
  }

  http::Server& start(http::Options options = {}) {
    options.port = 0;
    server_ = std::make_unique<http::Server>(
        options, [this](const ExchangePtr& exchange) { handle(exchange); },
        [](int status, std::string_view message) {
          return fmt::format(R"({{"code":{},"text":"{}"}})", status, message);
        });
    return *server_;
  }

  /// /echo answers at once with what came; /hold keeps the exchange for held(); /begin, too, having begun to answer;
  /// /drop answers nothing, /break begins only, /throw throws.
  void handle(const ExchangePtr& exchange) {
    const http::Request& request = exchange->request();
    ++requests_;
    if (request.path == "/hold" || request.path == "/begin") {
      if (request.path == "/begin") exchange->begin(200, "text/event-stream", {{"X-Kind", "stream"}});
      const std::lock_guard lock(mutex_);
      held_.push_back(exchange);
      arrived_.notify_all();
    } else if (request.path == "/break") {
      exchange->begin(200, "text/plain");
      exchange->write("half");
    } else if (request.path == "/throw") {
      throw std::runtime_error("the handler has failed");
    } else if (request.path != "/drop") {
      exchange->respond(200, "text/plain",
                        fmt::format("{} {} {} {}", request.method, request.path, request.query, request.body));
    }
  }

  /// The exchange that came as the `index`-th to /hold or /begin; nullptr if it does not come.
  ExchangePtr held(size_t index = 0) {
    std::unique_lock lock(mutex_);
    arrived_.wait_for(lock, 5s, [&] { return held_.size() > index; });
    return held_.size() > index ? held_[index] : nullptr;
  }
  void forget() {
    std::vector<ExchangePtr> gone;
    const std::lock_guard lock(mutex_);
    std::swap(gone, held_);
  }

  Client client() { return Client(server_->port()); }
  /// The answer to these bytes, on a connection of its own.
  HttpAnswer ask(std::string_view bytes) {
    Client one = client();
    one.send(bytes);
    return one.answer();
  }
  static std::string get(std::string_view path) { return fmt::format("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", path); }
  static std::string post(std::string_view path, std::string_view body, std::string_view headers = "") {
    return fmt::format("POST {} HTTP/1.1\r\nHost: x\r\n{}Content-Length: {}\r\n\r\n{}", path, headers, body.size(),
                       body);
  }
  void expect_alive() {
    const HttpAnswer answer = ask(get("/echo"));
    EXPECT_EQ(answer.status, 200);
    EXPECT_EQ(answer.body, "GET /echo  ");
  }

  std::unique_ptr<http::Server> server_;
  std::atomic<int> requests_ = 0;

 private:
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::vector<ExchangePtr> held_;
};

}  // namespace tidal::test
