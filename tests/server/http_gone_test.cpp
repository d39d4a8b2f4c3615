// Clients that go away, read nothing, or are still there when the server stops.
#include <gtest/gtest.h>

#include <future>

#include "server/http_setup.h"

namespace tidal::test {
namespace {

using Clock = std::chrono::steady_clock;

class HttpGone : public HttpTest {
 protected:
  /// Counts what on_gone() calls.
  void watch(const ExchangePtr& exchange) {
    exchange->on_gone([this] { ++calls_; });
  }
  std::atomic<int> calls_ = 0;
};

TEST_F(HttpGone, BeforeTheAnswer) {
  start();
  Client one = client();
  one.send(get("/hold"));
  const auto exchange = held();
  ASSERT_TRUE(exchange);
  watch(exchange);
  EXPECT_FALSE(exchange->gone());
  one.close();
  EXPECT_TRUE(soon([&] { return calls_ == 1; }));
  EXPECT_TRUE(exchange->gone());
  exchange->on_gone([&] { calls_ += 10; });
  EXPECT_EQ(calls_, 11) << "at once when it has gone already";
  exchange->respond(200, "", "nobody reads this");
  exchange->write("nor this");
  exchange->end();
  expect_alive();
  EXPECT_EQ(calls_, 11);
  EXPECT_TRUE(soon([&] { return server_->connections() <= 1; }));
}

TEST_F(HttpGone, InTheMiddleOfAStream) {
  start();
  Client one = client();
  one.send(get("/begin"));
  const auto exchange = held();
  ASSERT_TRUE(exchange);
  watch(exchange);
  exchange->write("something");
  EXPECT_NE(one.receive_until("something"), "");
  one.close();
  for (int i = 0; i < 1000; ++i) exchange->write("a signal here would end the program");
  EXPECT_TRUE(soon([&] { return exchange->gone(); }));
  EXPECT_TRUE(soon([&] { return calls_ == 1; }));
  exchange->write("more");
  exchange->end();
  expect_alive();
  EXPECT_EQ(calls_, 1);
}

TEST_F(HttpGone, WithRequestsSentAhead) {
  start();
  Client one = client();
  one.send(get("/hold") + get("/echo"));
  const auto exchange = held();
  ASSERT_TRUE(exchange);
  watch(exchange);
  EXPECT_FALSE(soon([&] { return exchange->gone(); }, 50ms));
  one.close();
  EXPECT_TRUE(soon([&] { return calls_ == 1; }));
  EXPECT_EQ(requests_, 1);
}

TEST_F(HttpGone, WithMoreSentAheadThanTheServerReads) {
  http::Options options;
  options.idle_time = 200ms;  // a quarter of it is the time between two looks
  start(options);
  Client one = client();
  one.send(get("/hold"));
  const auto exchange = held();
  ASSERT_TRUE(exchange);
  watch(exchange);
  ASSERT_TRUE(one.send(std::string(100000, 'x')));  // beyond what is read ahead, within what kernels take
  EXPECT_FALSE(soon([&] { return exchange->gone(); }, 300ms));
  one.close();
  EXPECT_TRUE(soon([&] { return calls_ == 1; }));
}

TEST_F(HttpGone, NotAfterTheAnswer) {
  start();
  Client one = client();
  one.send(get("/hold"));
  const auto exchange = held();
  ASSERT_TRUE(exchange);
  watch(exchange);
  exchange->respond(200, "", "done");
  EXPECT_EQ(one.answer().status, 200);
  one.close();
  EXPECT_TRUE(soon([&] { return server_->connections() == 0; }));
  exchange->on_gone([&] { ++calls_; });
  EXPECT_EQ(calls_, 0);
}

TEST_F(HttpGone, ExchangeHeldByItsOwnCall) {
  start();
  std::weak_ptr<http::Exchange> left;
  Client one = client();
  Client two = client();
  for (Client* each : {&one, &two}) {
    each->send(get("/hold"));
    auto exchange = held();
    ASSERT_TRUE(exchange);
    forget();
    left = exchange;
    exchange->on_gone([this, exchange] { ++calls_; });
    if (each == &two) exchange->respond(200, "", "done");
    exchange.reset();
    if (each == &one) one.close();
    EXPECT_TRUE(soon([&] { return left.expired(); }));
  }
  EXPECT_EQ(calls_, 1);
}

TEST_F(HttpGone, ClientThatNeverReadsIsCutOff) {
  http::Options options;
  options.most_unread = 100000;
  start(options);
  Client one(server_->port(), "127.0.0.1", 4096);
  one.send(get("/begin"));
  const auto exchange = held();
  ASSERT_TRUE(exchange);
  watch(exchange);
  const std::string piece(50000, 'x');
  size_t written = 0;
  while (!exchange->gone() && written < (size_t{64} << 20)) {
    exchange->write(piece);
    written += piece.size();
    std::this_thread::sleep_for(1ms);
  }
  EXPECT_TRUE(exchange->gone());
  EXPECT_GT(written, options.most_unread);
  EXPECT_LT(written, size_t{16} << 20) << "beyond the limit lies only what the kernel takes";
  EXPECT_TRUE(soon([&] { return calls_ == 1; }));
  EXPECT_TRUE(soon([&] { return server_->connections() == 0; }));
  expect_alive();
}

TEST_F(HttpGone, ClientThatReadsIsNotCutOff) {
  http::Options options;
  options.most_unread = 100000;
  start(options);
  Client one = client();
  one.send(get("/begin"));
  const auto exchange = held();
  ASSERT_TRUE(exchange);
  one.receive_until("\r\n\r\n");
  const std::string piece(20000, 'x');
  for (int i = 0; i < 100; ++i) {  // 20 times the limit
    exchange->write(piece);
    ASSERT_NE(one.receive_until("x\r\n"), "") << i;
  }
  EXPECT_FALSE(exchange->gone());
}

TEST_F(HttpGone, WholeAnswerNobodyTakes) {
  http::Options options;
  options.idle_time = 200ms;
  start(options);
  Client one(server_->port(), "127.0.0.1", 4096);
  one.send(get("/hold"));
  const auto exchange = held();
  ASSERT_TRUE(exchange);
  const auto begin = Clock::now();
  exchange->respond(200, "", std::string(64 << 20, 'x'));
  EXPECT_TRUE(soon([&] { return server_->connections() == 0; }));
  EXPECT_GT(Clock::now() - begin, 200ms);
}

class HttpStop : public HttpGone {};

TEST_F(HttpStop, WaitsForAStream) {
  start();
  Client idle = client();
  Client one = client();
  one.send(get("/begin"));
  const auto exchange = held();
  ASSERT_TRUE(exchange);
  ASSERT_TRUE(soon([&] { return server_->connections() == 2; }));
  auto stopped = std::async(std::launch::async, [&] { server_->stop(10s); });
  EXPECT_TRUE(idle.closed());
  EXPECT_FALSE(client().connected()) << "takes no new connections";
  exchange->write("to the ");
  EXPECT_EQ(stopped.wait_for(100ms), std::future_status::timeout);
  one.send(get("/echo"));  // behind a head that did not say close
  exchange->write("end");
  exchange->end();
  EXPECT_EQ(one.answer().body, "to the end");
  const HttpAnswer refused = one.answer();
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(refused.header("connection"), "close");
  EXPECT_TRUE(one.closed());
  EXPECT_EQ(stopped.wait_for(5s), std::future_status::ready)
      << "does not wait longer than there is something to wait for";
  EXPECT_EQ(requests_, 1);
}

TEST_F(HttpStop, WhatIsAnsweredMeanwhileSaysClose) {
  start();
  Client one = client();
  one.send(get("/hold"));
  const auto exchange = held();
  ASSERT_TRUE(exchange);
  Client idle = client();
  ASSERT_TRUE(soon([&] { return server_->connections() == 2; }));
  auto stopped = std::async(std::launch::async, [&] { server_->stop(10s); });
  ASSERT_TRUE(idle.closed());
  exchange->respond(200, "", "last");
  const HttpAnswer answer = one.answer();
  EXPECT_EQ(answer.body, "last");
  EXPECT_EQ(answer.header("connection"), "close");
  EXPECT_TRUE(one.closed());
  EXPECT_EQ(stopped.wait_for(5s), std::future_status::ready);
}

TEST_F(HttpStop, CutsOffWhenTheTimeIsOver) {
  start();
  Client one = client();
  one.send(get("/begin"));
  const auto exchange = held();
  ASSERT_TRUE(exchange);
  watch(exchange);
  const auto begin = Clock::now();
  server_->stop(100ms);
  EXPECT_GE(Clock::now() - begin, 100ms);
  EXPECT_LT(Clock::now() - begin, 5s);
  EXPECT_EQ(calls_, 1);
  EXPECT_TRUE(exchange->gone());
  EXPECT_TRUE(one.closed());
  EXPECT_EQ(server_->connections(), 0U);
  server_->stop(10s);
}

TEST_F(HttpStop, ASecondOneShortensTheFirst) {
  start();
  Client one = client();
  one.send(get("/hold"));
  ASSERT_TRUE(held());
  auto stopped = std::async(std::launch::async, [&] { server_->stop(std::chrono::milliseconds::max()); });
  EXPECT_EQ(stopped.wait_for(50ms), std::future_status::timeout);
  server_->stop(0ms);
  EXPECT_EQ(stopped.wait_for(5s), std::future_status::ready);
}

TEST_F(HttpStop, RequestsThatAreNotWholeAreNotWaitedFor) {
  start();
  Client one = client();
  one.send("POST /echo HTTP/1.1\r\nContent-Length: 5\r\n\r\n");
  ASSERT_TRUE(soon([&] { return server_->connections() == 1; }));
  const auto begin = Clock::now();
  server_->stop(10s);
  EXPECT_LT(Clock::now() - begin, 5s);
}

TEST_F(HttpStop, ExchangesOutliveTheServer) {
  for (int round = 0; round < 10; ++round) {
    start();
    std::vector<Client> clients;
    for (size_t i = 0; i < 4; ++i) {
      clients.push_back(client());
      clients.back().send(get(i % 2 == 0 ? "/begin" : "/hold"));
    }
    std::vector<std::thread> threads;
    for (size_t i = 0; i < 4; ++i) {
      auto exchange = held(i);
      ASSERT_TRUE(exchange);
      threads.emplace_back([exchange = std::move(exchange)]() mutable {
        while (!exchange->gone()) {
          exchange->write("x");
          std::this_thread::yield();
        }
        exchange->write("y");
        exchange->respond(200, "", "z");
        exchange->end();
        exchange.reset();
      });
    }
    forget();
    server_.reset();
    for (std::thread& thread : threads) thread.join();
  }
}

}  // namespace
}  // namespace tidal::test
