// Requests that are not what they should be: malformed, too long, too slow, too many.
#include <gtest/gtest.h>

#include "server/http_setup.h"

namespace tidal::test {
namespace {

http::Options small() {
  http::Options options;
  options.most_header = 2000;
  options.most_body = 10000;
  options.header_time = 150ms;
  options.body_time = 150ms;
  options.idle_time = 150ms;
  return options;
}

class HttpLimits : public HttpTest {
 protected:
  /// The status for these bytes, after which the connection must be closed, without a reset; the server must go on.
  int refusal(std::string_view bytes) {
    Client one = client();
    one.send(bytes);
    const HttpAnswer answer = one.answer();
    EXPECT_EQ(answer.header("connection"), "close") << bytes.substr(0, 100);
    EXPECT_EQ(answer.body.find(fmt::format("{{\"code\":{},", answer.status)), 0U) << answer.body;
    EXPECT_TRUE(one.closed()) << bytes.substr(0, 100);
    EXPECT_FALSE(one.reset()) << bytes.substr(0, 100);
    EXPECT_EQ(requests_, 0) << bytes.substr(0, 100);
    return answer.status;
  }
};

TEST_F(HttpLimits, WhatIsNotHttp) {
  start();
  for (const char* bytes :
       {"nonsense\r\n\r\n", "GET\r\n\r\n", "GET /\r\n\r\n", "GET / FTP/1.1\r\n\r\n", "GET / HTTP/1.1\nHost: x\n\n",
        "GET / HTTP/x.1\r\n\r\n", "GET / HTTP/1.1 \r\n\r\n", "G(T / HTTP/1.1\r\n\r\n", "GET  / HTTP/1.1\r\n\r\n",
        "GET /a b HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nno colon\r\n\r\n", "GET / HTTP/1.1\r\nA : b\r\n\r\n",
        "GET / HTTP/1.1\r\n: b\r\n\r\n", "GET / HTTP/1.1\r\nA: b\x01\r\n\r\n", "GET /\x7f HTTP/1.1\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\xfc\x03\x03 a TLS client says this"}) {
    EXPECT_EQ(refusal(bytes), 400) << bytes;
  }
  EXPECT_EQ(refusal("GET / HTTP/1.1\r\nA: \0\r\n\r\n"s), 400);
  expect_alive();
}

TEST_F(HttpLimits, OtherVersions) {
  start();
  for (const char* version : {"HTTP/2.0", "HTTP/0.9", "HTTP/1.2", "HTTP/9.9"}) {
    EXPECT_EQ(refusal(fmt::format("GET /echo {}\r\n\r\n", version)), 505) << version;
  }
  EXPECT_EQ(refusal("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 505);
}

TEST_F(HttpLimits, LengthsThatAreNone) {
  start();
  for (const char* headers :
       {"Content-Length: -1", "Content-Length: +5", "Content-Length: 5x", "Content-Length: 0x5",
        "Content-Length: ", "Content-Length: 5 5", "Content-Length: 5\r\nContent-Length: 6", "Content-Length: 5, 6",
        "Content-Length: 18446744073709551616", "Content-Length: 99999999999999999999999",
        "Content-Length: 5\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Content-Length: 5\r\nTransfer-Encoding: gzip", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"}) {
    EXPECT_EQ(refusal(fmt::format("POST /echo HTTP/1.1\r\n{}\r\n\r\n0\r\n\r\n", headers)), 400) << headers;
  }
  EXPECT_EQ(refusal("POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), 400);
  for (const char* coding : {"gzip", "gzip, chunked", "chunked, gzip", "chunked, identity"}) {
    EXPECT_EQ(refusal(fmt::format("POST /echo HTTP/1.1\r\nTransfer-Encoding: {}\r\n\r\n0\r\n\r\n", coding)), 501)
        << coding;
  }
  EXPECT_EQ(ask("POST /echo HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello").body,
            "POST /echo  hello");
}

TEST_F(HttpLimits, ChunksThatAreNone) {
  start();
  for (const char* body : {"x\r\nabc\r\n0\r\n\r\n", "-1\r\n\r\n", "\r\n\r\n", "3\r\nabcd\r\n0\r\n\r\n",
                           "3 3\r\nabc\r\n0\r\n\r\n", "3\nabc\n0\n\n", "3\r\nabc0\r\n\r\n\r\n",
                           "3;\x01=\r\nabc\r\n0\r\n\r\n", "0\r\nno colon\r\n\r\n", "0\r\nContent-Length: 3\r\n\r\n"}) {
    EXPECT_EQ(refusal(fmt::format("POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{}", body)), 400) << body;
  }
  // Sizes that overflow, one way or the other.
  for (const char* size : {"ffffffffffffffff", "10000000000000000", "fffffffffffffffffffff"}) {
    const int status = refusal(fmt::format("POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{}\r\nabc", size));
    EXPECT_TRUE(status == 400 || status == 413) << size << ": " << status;
  }
  expect_alive();
}

TEST_F(HttpLimits, Headers) {
  start(small());
  const auto with = [](size_t size) {
    const std::string before = "GET /echo HTTP/1.1\r\nA: ";
    return before + std::string(size - before.size() - 4, 'a') + "\r\n\r\n";
  };
  EXPECT_EQ(refusal(with(2001)), 431);
  EXPECT_EQ(refusal(with(1 << 20)), 431);
  EXPECT_EQ(refusal("GET /" + std::string(1 << 20, 'a')), 431);
  std::string many = "GET /echo HTTP/1.1\r\n";
  while (many.size() < 2500) many += "A: b\r\n";
  EXPECT_EQ(refusal(many), 431);
  EXPECT_EQ(ask(with(2000)).status, 200);
}

TEST_F(HttpLimits, HeadersInPieces) {
  start(small());
  Client one = client();
  one.send("GET /echo HTTP/1.1\r\n");
  for (int i = 0; i < 30; ++i) {  // no piece is long, and each ends a header
    std::this_thread::sleep_for(1ms);
    one.send("A: " + std::string(95, 'a') + "\r\n");
  }
  EXPECT_EQ(one.answer().status, 431);
}

TEST_F(HttpLimits, Bodies) {
  http::Options options = small();
  options.body_time = 5s;
  start(options);
  EXPECT_EQ(refusal("POST /echo HTTP/1.1\r\nContent-Length: 10001\r\n\r\n"), 413) << "before anything of it is read";
  EXPECT_EQ(refusal("POST /echo HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 10001\r\n\r\n"), 413);
  EXPECT_EQ(refusal(post("/echo", std::string(5 << 20, 'x'))), 413)
      << "and without a reset, which would hide the answer";
  std::string chunks = "POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
  for (int i = 0; i < 101; ++i) chunks += "64\r\n" + std::string(100, 'x') + "\r\n";
  EXPECT_EQ(refusal(chunks), 413);
  EXPECT_EQ(refusal("POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;" + std::string(5000, 'x')), 400);
  EXPECT_EQ(refusal("POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: " + std::string(5000, 'x')), 400);
  EXPECT_EQ(ask(post("/echo", std::string(10000, 'x'))).status, 200);
}

TEST_F(HttpLimits, SlowHeaders) {
  http::Options options = small();
  options.idle_time = 10s;
  start(options);
  Client one = client();
  const auto begin = std::chrono::steady_clock::now();
  int sent = 0;
  for (const char c : get("/a-path-that-takes-its-time")) {  // byte by byte: none of them buys more time
    std::this_thread::sleep_for(20ms);
    if (!one.receive(0ms).empty()) break;
    one.send(std::string_view(&c, 1));
    ++sent;
  }
  EXPECT_LT(sent, 20);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 3s);
  EXPECT_TRUE(one.closed());
  EXPECT_EQ(refusal("GET /echo HT"), 408);
}

TEST_F(HttpLimits, SlowBodies) {
  start(small());
  EXPECT_EQ(refusal("POST /echo HTTP/1.1\r\nContent-Length: 10\r\n\r\n"), 408);
  EXPECT_EQ(refusal("POST /echo HTTP/1.1\r\nContent-Length: 10\r\n\r\nhello"), 408);
  EXPECT_EQ(refusal("POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel"), 408);
  // One that goes on is not cut off, however long it takes.
  http::Options options;
  options.body_time = 400ms;
  start(options);
  Client one = client();
  one.send("POST /echo HTTP/1.1\r\nContent-Length: 10\r\n\r\n");
  for (int i = 0; i < 10; ++i) {
    std::this_thread::sleep_for(60ms);
    ASSERT_TRUE(one.send("x"));
  }
  EXPECT_EQ(one.answer().body, "POST /echo  xxxxxxxxxx");
}

TEST_F(HttpLimits, IdleConnectionsAreClosedWithoutAWord) {
  start(small());
  Client fresh = client();
  Client used = client();
  used.send(get("/echo"));
  EXPECT_EQ(used.answer().status, 200);
  EXPECT_EQ(fresh.receive(), "");
  EXPECT_EQ(used.receive(), "");
  EXPECT_TRUE(fresh.closed(100ms));
  EXPECT_TRUE(used.closed(100ms));
  // One that waits for its answer is not idle.
  Client waiting = client();
  waiting.send(get("/hold"));
  const auto exchange = held();
  ASSERT_TRUE(exchange);
  std::this_thread::sleep_for(400ms);
  EXPECT_FALSE(exchange->gone());
  exchange->respond(200, "", "at last");
  EXPECT_EQ(waiting.answer().body, "at last");
  // Empty lines are no request.
  Client lines = client();
  for (int i = 0; i < 20; ++i) {
    std::this_thread::sleep_for(20ms);
    lines.send("\r\n");
  }
  EXPECT_TRUE(lines.closed(100ms));
}

TEST_F(HttpLimits, Connections) {
  http::Options options;
  options.most_connections = 3;
  start(options);
  std::vector<Client> clients;
  for (int i = 0; i < 3; ++i) {
    clients.push_back(client());
    clients.back().send(get("/echo"));
    EXPECT_EQ(clients.back().answer().status, 200);
  }
  requests_ = 0;
  EXPECT_EQ(refusal(get("/echo")), 503);
  EXPECT_EQ(server_->connections(), 3U);
  clients.pop_back();
  EXPECT_TRUE(soon([&] { return server_->connections() == 2; }));
  expect_alive();
}

}  // namespace
}  // namespace tidal::test
