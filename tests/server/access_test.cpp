// Pages of other sites: which may ask, and what lets them read the answer.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <string>

#include "server/client.h"
#include "server/server.h"

namespace tidal::test {
namespace {

constexpr const char* kAllowed = "https://chat.example";

class Pages : public testing::Test {
 protected:
  HttpAnswer ask(const std::string& start, const std::string& origin, const std::string& headers = "") {
    Client one(server_.port());
    one.send(fmt::format("{} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nOrigin: {}\r\n{}\r\n", start, server_.port(), origin,
                         headers));
    return one.answer(start.starts_with("HEAD"));
  }
  static server::ServerOptions options() {
    server::ServerOptions options;
    options.http.port = 0;
    options.api_keys = {"secret"};
    options.allowed_origins = {"https://other.example", kAllowed};
    return options;
  }

  server::Server server_{options()};  // without a model yet
};

TEST_F(Pages, OfAnAllowedOriginMayReadEveryAnswer) {
  for (const auto& [start, status] : {std::pair{"GET /health", 503}, {"GET /v1/models", 401}, {"HEAD /", 200}}) {
    const HttpAnswer answer = ask(start, kAllowed);
    EXPECT_EQ(answer.status, status) << start;
    EXPECT_EQ(answer.header("access-control-allow-origin"), kAllowed) << start;
    EXPECT_EQ(answer.header("vary"), "Origin") << start;
    EXPECT_EQ(answer.header("access-control-allow-methods"), "") << start;
  }
}

TEST_F(Pages, AskBeforeTheyAskWithoutAKey) {
  const std::string headers =
      "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization, content-type\r\n";
  const HttpAnswer answer = ask("OPTIONS /v1/chat/completions", kAllowed, headers);
  EXPECT_EQ(answer.status, 204);
  EXPECT_EQ(answer.header("access-control-allow-origin"), kAllowed);
  EXPECT_EQ(answer.header("access-control-allow-methods"), "GET, POST");
  EXPECT_EQ(answer.header("access-control-allow-headers"), "*, Authorization");
  EXPECT_EQ(ask("OPTIONS /v1/chat/completions", kAllowed).status, 401) << "it asks for nothing";
}

TEST_F(Pages, OfOtherSitesMayNot) {
  for (const std::string origin :
       {"https://chat.example.org", "http://chat.example", "null", "https://chat.example:8443"}) {
    for (const std::string start : {"GET /health", "OPTIONS /v1/chat/completions"}) {
      const HttpAnswer answer = ask(start, origin, "Access-Control-Request-Method: POST\r\n");
      EXPECT_EQ(answer.status, 403) << start << origin;
      EXPECT_EQ(answer.header("access-control-allow-origin"), "") << start << origin;
    }
  }
}

}  // namespace
}  // namespace tidal::test
