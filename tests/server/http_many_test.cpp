// Many connections, and many requests that make no sense.
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <fstream>
#include <random>

#include "server/http_setup.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define TIDAL_TEST_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define TIDAL_TEST_SANITIZED 1
#endif
#endif

namespace tidal::test {
namespace {

/// Bytes of memory that this process has in use.
size_t resident() {
  std::ifstream file("/proc/self/statm");
  size_t all = 0;
  size_t pages = 0;
  file >> all >> pages;
  return pages * static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

/// How many files this process may open, once it has asked for all it can get.
size_t most_files() {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  getrlimit(RLIMIT_NOFILE, &limit);
  return static_cast<size_t>(limit.rlim_cur);
}

class HttpMany : public HttpTest {
 protected:
  /// Opens connections until there are `count`, each used once.
  void open(size_t count) {
    while (clients_.size() < count) {
      clients_.push_back(client());
      ASSERT_TRUE(clients_.back().connected()) << clients_.size();
      ASSERT_TRUE(clients_.back().send(post("/echo", std::string(20000, 'x'))));
      ASSERT_EQ(clients_.back().answer().status, 200);
    }
  }
  std::vector<Client> clients_;
};

TEST_F(HttpMany, IdleConnectionsCostLittleMemory) {
  if (most_files() < 1100) GTEST_SKIP() << "this process may open " << most_files() << " files, expected 1100";
  start();
  open(20);  // what is made once
  const size_t before = resident();
  open(520);
  EXPECT_EQ(server_->connections(), 520U);
  const size_t after = resident();
#ifndef TIDAL_TEST_SANITIZED
  EXPECT_LE(after, before + (size_t{20} << 20));
#endif
  RecordProperty("bytes", std::to_string((after - before) / 500));
  expect_alive();
}

TEST_F(HttpMany, ThousandsOfIdleConnectionsDoNotHurt) {
  constexpr size_t kCount = 5000;
  if (most_files() < 2 * kCount + 100)
    GTEST_SKIP() << "this process may open " << most_files() << " files, expected 10100";
  start();
  while (clients_.size() < kCount) {
    clients_.push_back(client());
    ASSERT_TRUE(clients_.back().connected()) << clients_.size();
  }
  ASSERT_TRUE(soon([&] { return server_->connections() == kCount; }));
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < 100; ++i) expect_alive();
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 2s) << "20 ms a request, a hundred times what it takes";
  for (size_t i = 0; i < kCount; i += 100) {
    clients_[i].send(get("/echo"));
    EXPECT_EQ(clients_[i].answer().status, 200);
  }
}

TEST_F(HttpMany, WithoutFileDescriptors) {
  start();
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  std::vector<Client> waiting;
  waiting.push_back(client());
  waiting.push_back(client());
  ASSERT_TRUE(soon([&] { return server_->connections() == 2; }));
  // The lowest free one: all below are in use.
  const int spare = ::socket(AF_INET, SOCK_STREAM, 0);
  rlimit none = limit;
  none.rlim_cur = static_cast<rlim_t>(spare) + 1;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(server_->port()));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(::connect(spare, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  rusage before{};
  rusage after{};
  getrusage(RUSAGE_SELF, &before);
  std::this_thread::sleep_for(400ms);
  getrusage(RUSAGE_SELF, &after);
  EXPECT_EQ(server_->connections(), 2U) << "the limit is none";
  setrlimit(RLIMIT_NOFILE, &limit);
  const auto used = [](const rusage& usage) {
    return 1e6 * static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
  };
  EXPECT_LT(used(after) - used(before), 100000) << "µs of a processor while there is nothing to do but wait";
  waiting[0].send(get("/echo"));
  EXPECT_EQ(waiting[0].answer().status, 200);
  EXPECT_TRUE(soon([&] { return server_->connections() == 3; })) << "taken once it can be";
  ::close(spare);
}

TEST_F(HttpMany, NonsenseDoesNotKill) {
  http::Options options;
  options.most_body = 100000;
  options.header_time = 50ms;
  options.body_time = 50ms;
  start(options);
  std::mt19937 random(7);
  const auto below = [&](size_t n) { return std::uniform_int_distribution<size_t>(0, n - 1)(random); };
  const std::vector<std::string> seeds = {
      get("/echo?x"),
      post("/echo", "hello"),
      "POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;a=\"b\"\r\nhello\r\n0\r\nT: v\r\n\r\n",
      "POST /echo HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello" + get("/drop"),
      "GET /%41%20b HTTP/1.0\r\nConnection: keep-alive, close\r\nA: b\r\n c\r\n\r\n" + get("/throw"),
      "HEAD /break HTTP/1.1\r\nA:\r\n\r\nOPTIONS * HTTP/1.1\r\n\r\n"};
  const std::vector<std::string> words = {"\r\n",     "\r\n\r\n",
                                          "\n",       "\r",
                                          ":",        "%",
                                          "chunked",  "Content-Length: 3\r\n",
                                          "0\r\n",    "ffffffffffffffff",
                                          "\0"s,      "-1",
                                          " ",        ",",
                                          ";",        "\"",
                                          "HTTP/1.1", "\t"};
  for (int i = 0; i < 4000; ++i) {
    std::string bytes;
    if (i % 8 == 0) {
      bytes.resize(below(300));
      for (char& c : bytes) c = static_cast<char>(below(256));
    } else {
      bytes = seeds[below(seeds.size())];
      for (size_t edits = 1 + below(4); edits > 0 && !bytes.empty(); --edits) {
        const size_t at = below(bytes.size());
        switch (below(4)) {
          case 0: bytes[at] = static_cast<char>(below(256)); break;
          case 1: bytes.erase(at, 1 + below(8)); break;
          case 2: bytes.insert(at, words[below(words.size())]); break;
          default: bytes.insert(at, bytes.substr(below(bytes.size()), below(30))); break;
        }
      }
    }
    Client one = client();
    const size_t half = below(bytes.size() + 1);
    one.send(bytes.substr(0, half));
    one.send(bytes.substr(half));
    if (i % 4 != 0) one.half_close();
    if (i % 4 == 1) one.closed();
    if (i % 200 == 0) expect_alive();
  }
  expect_alive();
  EXPECT_TRUE(soon([&] { return server_->connections() <= 1; })) << "nothing is left behind";
}

}  // namespace
}  // namespace tidal::test
