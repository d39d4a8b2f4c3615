#include "server/page/web_page.h"

#include <fmt/format.h>

#include <random>
#include <string>
#include <utility>

#include "report/filled_page.h"
#include "server/page/page_template.h"

namespace tidal::server {
namespace {

/// What nobody can guess who would put a script into the page.
std::string new_nonce() {
  std::random_device random;
  return fmt::format("{:08x}{:08x}{:08x}{:08x}", random(), random(), random(), random());
}

std::string page_with(const std::string& nonce) {
  const std::pair<std::string_view, std::string_view> values[] = {
      {"@nonce@", nonce}, {"@style@", kPageStyle}, {"@nonce@", nonce}, {"@script@", kPageScript}};
  return filled_page(kPageHtml, values);
}

}  // namespace

void web_page(const std::shared_ptr<http::Exchange>& exchange) {
  const std::string nonce = new_nonce();
  const std::string policy = fmt::format(
      "default-src 'none'; connect-src 'self'; img-src data:; script-src 'nonce-{0}'; style-src 'nonce-{0}'; "
      "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
      nonce);
  exchange->respond(200, "text/html; charset=utf-8", page_with(nonce),
                    {{"Content-Security-Policy", policy},
                     {"X-Content-Type-Options", "nosniff"},
                     {"Referrer-Policy", "same-origin"},
                     {"Cache-Control", "no-store"}});
}

}  // namespace tidal::server
