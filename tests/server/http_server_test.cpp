// Requests and answers as they should be, over a socket.
#include "server/http/http_server.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "server/http_setup.h"
#include "support/error.h"

namespace tidal::test {
namespace {

TEST_F(HttpTest, AnswersWithLengthTypeAndName) {
  start();
  const HttpAnswer answer = ask(get("/echo?a=%41&b"));
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(answer.version, "HTTP/1.1");
  EXPECT_EQ(answer.body, "GET /echo a=%41&b ");
  EXPECT_EQ(answer.header("content-length"), std::to_string(answer.body.size()));
  EXPECT_EQ(answer.header("content-type"), "text/plain");
  EXPECT_EQ(answer.header("server"), "tidal");
  EXPECT_EQ(answer.header("connection"), "");
}

TEST_F(HttpTest, RequestHasWhatWasSent) {
  start();
  Client one = client();
  one.send("PATCH /hold?x=1?y HTTP/1.1\r\nHost: here\r\nX-Two:  b \r\nx-TWO: c\r\nContent-Length: 5\r\n\r\nh\0llo"s);
  const auto exchange = held();
  ASSERT_TRUE(exchange);
  const http::Request& request = exchange->request();
  EXPECT_EQ(request.method, "PATCH");
  EXPECT_EQ(request.path, "/hold");
  EXPECT_EQ(request.query, "x=1?y");
  EXPECT_EQ(request.body, "h\0llo"s);
  EXPECT_EQ(request.headers,
            (http::Headers{{"host", "here"}, {"x-two", "b"}, {"x-two", "c"}, {"content-length", "5"}}));
  EXPECT_EQ(request.header("x-two"), "b");
  EXPECT_EQ(request.header("x-three"), "");
}

TEST_F(HttpTest, ServesOneConnectionManyTimes) {
  start();
  Client one = client();
  for (int i = 0; i < 50; ++i) {
    one.send(post("/echo", fmt::format("body {}", i)));
    EXPECT_EQ(one.answer().body, fmt::format("POST /echo  body {}", i));
  }
  EXPECT_EQ(server_->connections(), 1U);
  one.send("\r\n" + get("/echo"));  // an empty line before a request is skipped
  EXPECT_EQ(one.answer().status, 200);
}

TEST_F(HttpTest, KeepsOrClosesAsTheClientAsks) {
  start();
  Client closing = client();
  closing.send("GET /echo HTTP/1.1\r\nConnection: close\r\n\r\n");
  EXPECT_EQ(closing.answer().header("connection"), "close");
  EXPECT_TRUE(closing.closed());

  Client old = client();
  old.send("GET /echo HTTP/1.0\r\n\r\n");
  EXPECT_EQ(old.answer().status, 200);
  EXPECT_TRUE(old.closed());

  Client kept = client();
  for (int i = 0; i < 2; ++i) {
    kept.send("GET /echo HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    const HttpAnswer answer = kept.answer();
    EXPECT_EQ(answer.body, "GET /echo  ");
    EXPECT_EQ(answer.header("connection"), "keep-alive");
  }
}

TEST_F(HttpTest, PipelinedRequestsAreAnsweredInOrder) {
  start();
  Client one = client();
  std::string all = get("/hold");
  for (int i = 0; i < 20; ++i) all += post(fmt::format("/{}", i), "x");
  one.send(all);
  const auto exchange = held();
  ASSERT_TRUE(exchange);
  EXPECT_EQ(one.receive(50ms), "");
  EXPECT_FALSE(exchange->gone()) << "what was sent ahead must not pass for a close";
  EXPECT_EQ(requests_, 1);
  exchange->respond(200, "text/plain", "held");
  EXPECT_EQ(one.answer().body, "held");
  for (int i = 0; i < 20; ++i) EXPECT_EQ(one.answer().body, fmt::format("POST /{}  x", i));
}

TEST_F(HttpTest, PipelinedDataIsLeftWithTheClient) {
  start();
  Client one = client();
  one.send(get("/hold"));
  const auto exchange = held();
  ASSERT_TRUE(exchange);
  // More than both kernel buffers together take: send() gives up when the server does not read on.
  EXPECT_FALSE(one.send(post("/echo", std::string(30 << 20, 'x')), 300ms));
  EXPECT_FALSE(exchange->gone());
  // Read on once it is wanted: the half that did not come is waited for.
  exchange->respond(200, "", "held");
  EXPECT_EQ(one.answer().body, "held");
  one.close();
  EXPECT_TRUE(soon([&] { return server_->connections() == 0; }));
}

TEST_F(HttpTest, ByteByByte) {
  start();
  Client one = client();
  const std::string bytes =
      post("/echo", "split") +
      "POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nT: "
      "v\r\n\r\n" +
      "POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + get("/echo");
  for (const char c : bytes) {
    ASSERT_TRUE(one.send(std::string_view(&c, 1)));
    if (c == '\n' || c == '\r' || c == 'c') std::this_thread::sleep_for(1ms);
  }
  EXPECT_EQ(one.answer().body, "POST /echo  split");
  EXPECT_EQ(one.answer().body, "POST /echo  abcde");
  EXPECT_EQ(one.answer().body, "POST /echo  ");
  EXPECT_EQ(one.answer().body, "GET /echo  ");
}

TEST_F(HttpTest, TrailersAreNoHeaders) {
  start();
  Client one = client();
  one.send("POST /hold HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nAuthorization: forged\r\n\r\n");
  const auto exchange = held();
  ASSERT_TRUE(exchange);
  EXPECT_EQ(exchange->request().header("authorization"), "");
  EXPECT_EQ(exchange->request().body, "a");
}

TEST_F(HttpTest, BodyOfMegabytes) {
  start();
  const std::string body(5 << 20, 'b');
  EXPECT_EQ(ask(post("/echo", body)).body, "POST /echo  " + body);
}

TEST_F(HttpTest, Expect) {
  start();
  Client one = client();
  one.send("POST /echo HTTP/1.1\r\nExpect: 100-Continue\r\nContent-Length: 4\r\n\r\n");
  EXPECT_EQ(one.answer().status, 100);
  one.send("body");
  EXPECT_EQ(one.answer().body, "POST /echo  body");
  // Nobody waits where the body has come with the headers.
  one.send(post("/echo", "body", "Expect: 100-continue\r\n"));
  EXPECT_EQ(one.answer().status, 200);
  EXPECT_EQ(ask(post("/echo", "body", "Expect: a miracle\r\n")).status, 417);
}

TEST_F(HttpTest, HeadHasNoBody) {
  start();
  Client one = client();
  one.send("HEAD /echo HTTP/1.1\r\n\r\n");
  const HttpAnswer answer = one.answer(true);
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(answer.header("content-length"), std::to_string(std::string("HEAD /echo  ").size()));
  one.send("HEAD /begin HTTP/1.1\r\n\r\n");
  const auto exchange = held();
  ASSERT_TRUE(exchange);
  exchange->write("not sent");
  exchange->end();
  EXPECT_EQ(one.answer(true).header("x-kind"), "stream");
  one.send(get("/echo"));
  EXPECT_EQ(one.answer().body, "GET /echo  ") << "what came between would be taken for its beginning";
}

TEST_F(HttpTest, StreamsInPieces) {
  start();
  Client one = client();
  for (size_t i = 0; i < 2; ++i) {
    one.send(get("/begin"));
    const auto exchange = held(i);
    ASSERT_TRUE(exchange);
    EXPECT_NE(one.receive_until("Transfer-Encoding: chunked\r\n\r\n"), "") << "headers are sent at once";
    exchange->write("one");
    EXPECT_EQ(one.receive_until("\r\none\r\n"), "3\r\none\r\n");
    exchange->write("");  // which would be the end
    exchange->write(std::string(26, 'z'));
    EXPECT_EQ(one.receive_until("zz\r\n"), "1a\r\n" + std::string(26, 'z') + "\r\n");
    exchange->end();
    EXPECT_EQ(one.receive_until("0\r\n\r\n"), "0\r\n\r\n");
    exchange->write("late");
    exchange->respond(200, "", "late");
  }
}

TEST_F(HttpTest, StreamsToOldClientsUntilTheClose) {
  start();
  Client one = client();
  one.send("GET /begin HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  const auto exchange = held();
  ASSERT_TRUE(exchange);
  exchange->write("one ");
  exchange->write("two");
  exchange->end();
  const HttpAnswer answer = one.answer();
  EXPECT_EQ(answer.header("transfer-encoding"), "");
  EXPECT_EQ(answer.header("connection"), "close");
  EXPECT_EQ(answer.body, "one two");
}

TEST_F(HttpTest, ManyThreadsWrite) {
  start();
  Client one = client();
  one.send(get("/begin"));
  const auto exchange = held();
  ASSERT_TRUE(exchange);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&exchange, t] {
      for (int i = 0; i < 500; ++i) exchange->write(std::string(1, static_cast<char>('a' + t)));
    });
  }
  for (std::thread& thread : threads) thread.join();
  exchange->end();
  const std::string body = one.answer().body;
  EXPECT_EQ(body.size(), 2000U);
  for (const char c : {'a', 'b', 'c', 'd'}) EXPECT_EQ(std::count(body.begin(), body.end(), c), 500);
}

TEST_F(HttpTest, HeadersOfAnAnswer) {
  start();
  Client one = client();
  one.send(get("/hold"));
  const auto exchange = held();
  ASSERT_TRUE(exchange);
  exchange->respond(204, "", "", {{"X-A", "1"}, {"X-B", "split\r\nX-C: 2"}});
  const HttpAnswer answer = one.answer();
  EXPECT_EQ(answer.status, 204);
  EXPECT_EQ(answer.header("x-a"), "1");
  EXPECT_EQ(answer.header("x-b"), "split  X-C: 2");
  EXPECT_EQ(answer.headers.count("x-c"), 0U);
  EXPECT_EQ(answer.headers.count("content-length"), 0U);
  EXPECT_EQ(answer.headers.count("content-type"), 0U);
}

TEST_F(HttpTest, PathsAreDecoded) {
  start();
  EXPECT_EQ(ask(get("/a%20b%2Fc%c3%a9+d?e%20f")).body, "GET /a b/c\xc3\xa9+d e%20f ");
  EXPECT_EQ(ask("OPTIONS * HTTP/1.1\r\n\r\n").body, "OPTIONS *  ");
  for (const char* path : {"/%", "/%4", "/%zz", "/%4g", "/a%00b", "echo", "*", "http://x/echo"}) {
    EXPECT_EQ(ask(get(path)).status, 400) << path;
  }
}

TEST_F(HttpTest, WhatNobodyAnswersIsAnError) {
  start();
  const HttpAnswer dropped = ask(get("/drop"));
  EXPECT_EQ(dropped.status, 500);
  EXPECT_EQ(dropped.body, R"({"code":500,"text":"this request was given up"})");
  EXPECT_EQ(dropped.header("content-type"), "application/json");
  const HttpAnswer thrown = ask(get("/throw"));
  EXPECT_EQ(thrown.status, 500);
  EXPECT_EQ(thrown.body, R"({"code":500,"text":"the handler has failed"})");
  // In the middle of an answer only a close can say it.
  Client one = client();
  one.send(get("/break"));
  EXPECT_NE(one.receive_until("4\r\nhalf\r\n"), "");
  EXPECT_EQ(one.receive(), "");
  EXPECT_TRUE(one.closed());
  expect_alive();
}

TEST_F(HttpTest, DropByAnotherThread) {
  start();
  Client one = client();
  one.send(get("/hold"));
  ASSERT_TRUE(held());
  forget();
  EXPECT_EQ(one.answer().status, 500);
  one.send(get("/echo"));
  EXPECT_EQ(one.answer().status, 200);
}

TEST_F(HttpTest, HalfClosedClientGetsWhatIsMadeAtOnce) {
  start();
  Client one = client();
  one.send(get("/echo") + get("/echo"));
  one.half_close();
  EXPECT_EQ(one.answer().status, 200);
  EXPECT_EQ(one.answer().status, 200);
  EXPECT_TRUE(one.closed());
}

TEST_F(HttpTest, HalfClosedClientGetsTheRestOfAWholeAnswer) {
  start();
  Client one(server_->port(), "127.0.0.1", 4096);
  one.send(get("/hold"));
  const auto exchange = held();
  ASSERT_TRUE(exchange);
  exchange->respond(200, "", std::string(8 << 20, 'x'));
  EXPECT_NE(one.receive_until("\r\n\r\n"), "");
  one.half_close();
  size_t count = 0;
  for (std::string piece = one.receive(); !piece.empty(); piece = one.receive()) count += piece.size();
  EXPECT_EQ(count, size_t{8} << 20);
}

std::unique_ptr<http::Server> listening(const std::string& host, int port) {
  http::Options options;
  options.host = host;
  options.port = port;
  return std::make_unique<http::Server>(
      options, [](const auto& exchange) { exchange->respond(200, "", "hi"); },
      [](int, std::string_view) { return std::string(); });
}

TEST(HttpListen, AddressInUse) {
  const auto first = listening("127.0.0.1", 0);
  EXPECT_EQ(error_of([&] { listening("127.0.0.1", first->port()); }),
            fmt::format("127.0.0.1:{}: cannot listen there, address already in use", first->port()));
}

TEST(HttpListen, HostsThatAreNotHere) {
  EXPECT_EQ(error_of([] { listening("no.such.host.invalid", 80); }),
            "no.such.host.invalid:80: cannot find this host, expected an address or a name of this machine");
  EXPECT_EQ(error_of([] { listening("192.0.2.1", 8080); }),
            "192.0.2.1:8080: cannot listen there, cannot assign requested address");
  EXPECT_EQ(error_of([] { listening("127.0.0.1", 65536); }), "127.0.0.1:65536: expected a port from 0 to 65535");
}

TEST(HttpListen, NamesAndVersion6) {
  const auto named = listening("localhost", 0);
  Client one(named->port());
  one.send("GET / HTTP/1.1\r\n\r\n");
  EXPECT_EQ(one.answer().body, "hi");
  for (const char* host : {"::1", "[::1]"}) {
    std::unique_ptr<http::Server> server;
    try {
      server = listening(host, 0);
    } catch (const Error& error) {
      GTEST_SKIP() << error.what();  // a machine without IPv6
    }
    Client two(server->port(), "::1");
    two.send("GET / HTTP/1.1\r\n\r\n");
    EXPECT_EQ(two.answer().body, "hi") << host;
  }
}

}  // namespace
}  // namespace tidal::test
