// The page for people: there before the model is, for anybody who may reach the server, and shut against everything
// else.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <string>

#include "server/client.h"
#include "server/server.h"

namespace tidal::test {
namespace {

class WebPage : public testing::Test {
 protected:
  HttpAnswer ask(const std::string& start, const std::string& headers = "") {
    Client one(server_.port());
    one.send(fmt::format("{} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\n{}\r\n", start, server_.port(), headers));
    return one.answer(start.starts_with("HEAD"));
  }
  static server::ServerOptions options() {
    server::ServerOptions options;
    options.http.port = 0;
    options.api_keys = {"secret"};
    return options;
  }

  server::Server server_{options()};  // without a model yet
};

/// What stands between two marks, "" without them.
std::string between(const std::string& text, const std::string& from, const std::string& to) {
  const size_t begin = text.find(from);
  if (begin == std::string::npos) return "";
  const size_t at = begin + from.size();
  return text.substr(at, text.find(to, at) - at);
}

TEST_F(WebPage, IsThereBeforeTheModelAndWithoutAKey) {
  const HttpAnswer page = ask("GET /");
  EXPECT_EQ(page.status, 200);
  EXPECT_EQ(page.header("content-type"), "text/html; charset=utf-8");
  EXPECT_TRUE(page.body.starts_with("<!doctype html>"));
  EXPECT_TRUE(page.body.ends_with("</html>\n"));
  for (const char* mark : {"@nonce@", "@style@", "@script@", "@server"}) {
    EXPECT_EQ(page.body.find(mark), std::string::npos) << mark << " is left of the template";
  }
  EXPECT_EQ(ask("GET /health").status, 503);
  EXPECT_EQ(ask("GET /v1/models").status, 401);
  const HttpAnswer head = ask("HEAD /");
  EXPECT_EQ(head.status, 200);
  EXPECT_EQ(head.body, "");
  EXPECT_EQ(head.header("content-length"), std::to_string(page.body.size()));
  EXPECT_EQ(ask("POST /", "Authorization: Bearer secret\r\nContent-Length: 0\r\n").status, 405);
}

TEST_F(WebPage, LoadsNothingAndRunsItsOwnScriptAlone) {
  const HttpAnswer page = ask("GET /"), again = ask("GET /");
  const std::string policy = page.header("content-security-policy");
  EXPECT_TRUE(policy.starts_with("default-src 'none'; ")) << policy;
  EXPECT_EQ(policy.find("unsafe"), std::string::npos) << policy;
  EXPECT_EQ(policy.find("http"), std::string::npos) << policy;
  const std::string nonce = between(policy, "script-src 'nonce-", "'");
  EXPECT_EQ(nonce.size(), 32u);
  EXPECT_EQ(between(page.body, "<script nonce=\"", "\""), nonce);
  EXPECT_EQ(between(page.body, "<style nonce=\"", "\""), nonce);
  EXPECT_NE(between(again.header("content-security-policy"), "script-src 'nonce-", "'"), nonce);
  EXPECT_EQ(page.body.find("http:"), std::string::npos);
  EXPECT_EQ(page.body.find("https:"), std::string::npos);
}

TEST_F(WebPage, IsNotForOtherSites) {
  EXPECT_EQ(ask("GET /", "Origin: https://elsewhere.example\r\n").status, 403);
  EXPECT_EQ(ask("GET /", fmt::format("Origin: http://127.0.0.1:{}\r\n", server_.port())).status, 200);
  Client one(server_.port());
  one.send("GET / HTTP/1.1\r\nHost: elsewhere.example\r\n\r\n");
  EXPECT_EQ(one.answer().status, 403);
}

}  // namespace
}  // namespace tidal::test
