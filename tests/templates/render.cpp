// Renders conversations by chat templates for templates_test.py, which says what it should be.
//   stdin:  [{"file", "messages": [{"role", "content"}], "add_generation_prompt", "now", "variables": {...}}, ...]
//   stdout: [{"text"} or {"error"}, ...]
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "text/chat_template.h"

using Json = nlohmann::ordered_json;

namespace {

std::string render(const Json& request) {
  const auto path = request.at("file").get<std::string>();
  std::ifstream file(path, std::ios::binary);
  const std::string source(std::istreambuf_iterator<char>(file), {});
  if (source.empty()) tidal::fail("{}: is empty or missing", path);
  std::vector<tidal::ChatMessage> messages;
  for (const Json& message : request.at("messages")) messages.push_back({message.at("role"), message.at("content")});
  const tidal::ChatTemplate chat_template("template", source,
                                          {.bos_token = request.at("bos_token"),
                                           .eos_token = request.at("eos_token"),
                                           .more = request.at("variables").dump(),
                                           .now = request.at("now").get<std::time_t>()});
  return chat_template.render(messages, request.at("add_generation_prompt"));
}

}  // namespace

int main() {
  Json answers = Json::array();
  for (const Json& request : Json::parse(std::cin)) {
    try {
      answers.push_back({{"text", render(request)}});
    } catch (const tidal::Error& error) {
      answers.push_back({{"error", error.what()}});
    }
  }
  std::cout << answers.dump() << '\n';
}
