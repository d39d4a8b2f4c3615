#include "server/api/logprobs.h"

#include <string>
#include <utility>

namespace tidal::server {

Json logprobs_list(const std::vector<TokenLogprob>& logprobs, const Tokenizer& tokenizer, bool ids) {
  const auto one_of = [&](Token token, float logprob) {
    const std::string text = tokenizer.piece(token, true);
    Json bytes = Json::array();
    for (const char byte : text) bytes.push_back(static_cast<unsigned char>(byte));
    Json json = Json::object();
    if (ids) json["id"] = token;
    json.update({{"token", text}, {"logprob", logprob}, {"bytes", std::move(bytes)}});
    return json;
  };
  Json all = Json::array();
  for (const TokenLogprob& one : logprobs) {
    Json json = one_of(one.token, one.logprob);
    json["top_logprobs"] = Json::array();
    for (const auto& [token, logprob] : one.top) json["top_logprobs"].push_back(one_of(token, logprob));
    all.push_back(std::move(json));
  }
  return all;
}

}  // namespace tidal::server
