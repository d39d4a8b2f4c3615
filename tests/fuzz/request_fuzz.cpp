// libFuzzer target of what clients send: whatever the bytes, and however they are cut, a request is read or refused.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>

#include "server/error.h"
#include "server/http/request_parser.h"
#include "server/json.h"

namespace {

using tidal::http::Request;
using tidal::http::RequestParser;

constexpr size_t kMostHeader = 512, kMostBody = 1024;

/// libFuzzer keeps the input of a program that ends like this.
void expect(bool holds) {
  if (!holds) std::abort();
}

struct Outcome {
  size_t used = 0;
  bool done = false;
  int refused = 0;
  Request request;
};

/// Feeds the parser as a connection does, `step` bytes more at a time.
Outcome parse(std::string_view bytes, size_t step) {
  RequestParser parser(kMostHeader, kMostBody);
  Outcome outcome;
  for (size_t there = 0; there < bytes.size() && !parser.done() && parser.refused() == 0;) {
    there = std::min(bytes.size(), there + step);
    outcome.used += parser.put(bytes.substr(outcome.used, there - outcome.used));
    expect(outcome.used <= there);
  }
  outcome.done = parser.done();
  outcome.refused = parser.refused();
  expect(!outcome.done || outcome.refused == 0);
  expect((outcome.refused == 0) == parser.refusal().empty());
  expect(outcome.refused == 0 || (outcome.refused >= 400 && outcome.refused < 600));
  if (outcome.done) {
    expect(parser.header_done());
    outcome.request = parser.take();
  }
  return outcome;
}

void check(const Request& request) {
  expect(!request.path.empty() && request.path.find('\0') == std::string::npos);
  size_t bytes = request.path.size() + request.query.size();
  for (const auto& [name, value] : request.headers) bytes += name.size() + value.size();
  expect(bytes <= kMostHeader && request.body.size() <= kMostBody);
}

/// Fields of any type, asked for as every type.
void read_fields(const std::string& body) {
  using namespace tidal::server;
  try {
    const Json json = parse_object(body);
    const std::string text = dump(json);
    expect(dump(parse_object(text)) == text);
    const Fields fields(json);
    for (const auto& item : json.items()) {
      const std::string& name = item.key();
      const auto ask = [&](const auto& question) {
        try {
          question();
        } catch (const ApiError& error) {
          expect(error.status() == 400 && *error.what() != '\0');
        }
      };
      ask([&] { fields.boolean(name); });
      ask([&] {
        if (const auto integer = fields.integer(name, -9, 9)) expect(*integer >= -9 && *integer <= 9);
      });
      ask([&] {
        if (const auto number = fields.number(name, 0, 2)) expect(*number >= 0 && *number <= 2);
      });
      ask([&] {
        if (const auto string = fields.string(name)) expect(string->find('\0') == std::string::npos);
      });
      ask([&] { fields.array(name); });
      ask([&] { fields.object(name); });
    }
  } catch (const ApiError& error) {
    expect(error.status() == 400);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const Outcome whole = parse(bytes, std::max<size_t>(size, 1));
  for (const size_t step : {size_t{1}, size % 7 + 2}) {
    const Outcome pieces = parse(bytes, step);
    // What does not end in a request may be refused with more or fewer bytes there; what does is the same, however it
    // came. But for what is around chunks: that it is too long is seen only while its end is missing.
    const bool long_lines = whole.done && pieces.refused == 400 && size > kMostHeader;
    expect(pieces.done == whole.done || long_lines);
    if (!pieces.done) continue;
    expect(pieces.used == whole.used && pieces.request.method == whole.request.method);
    expect(pieces.request.path == whole.request.path && pieces.request.query == whole.request.query);
    expect(pieces.request.headers == whole.request.headers && pieces.request.body == whole.request.body);
  }
  if (whole.done) {
    check(whole.request);
    read_fields(whole.request.body);
  }
  return 0;
}
