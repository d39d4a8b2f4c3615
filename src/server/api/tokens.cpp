// POST /tokenize, /detokenize and /apply-template, as llama-server has them.
#include "core/utf8.h"
#include "server/api/apis.h"
#include "server/api/chat_prompt.h"
#include "server/api/tools.h"
#include "server/error.h"

namespace tidal::server {
void tokenize(Service& service, const ExchangePointer& exchange) {
  const Json body = parse_object(exchange->request().body);
  const Fields fields(body);
  const Tokenizer& tokenizer = service.tokenizer();
  const std::string text = fields.string("content").value_or("");
  const bool special = fields.boolean("add_special").value_or(false);
  const bool parse = fields.boolean("parse_special").value_or(true);
  const bool pieces = fields.boolean("with_pieces").value_or(false);
  Json tokens = Json::array();
  if (!text.empty() || special) {
    for (const Token token : tokenizer.encode(text, special, parse)) {
      if (!pieces) {
        tokens.push_back(token);
        continue;
      }
      const std::string piece = tokenizer.piece(token, true);
      Json json{{"id", token}};
      if (find_invalid_utf8(piece)) {  // a part of a character: its bytes
        for (const char byte : piece) json["piece"].push_back(static_cast<unsigned char>(byte));
      } else {
        json["piece"] = piece;
      }
      tokens.push_back(std::move(json));
    }
  }
  respond(exchange, {{"tokens", std::move(tokens)}});
}

void detokenize(Service& service, const ExchangePointer& exchange) {
  const Json body = parse_object(exchange->request().body);
  const Fields fields(body);
  const Json* given = fields.array("tokens");
  std::string text;
  for (size_t i = 0; given && i < given->size(); ++i) {
    const int64_t token = (*given)[i].is_number_integer() ? (*given)[i].get<int64_t>() : -1;
    if (token < 0 || token >= service.tokenizer().vocab_size()) {
      refuse("tokens", "'tokens[{}]': expected a token from 0 to {}", i, service.tokenizer().vocab_size() - 1);
    }
    text += service.tokenizer().piece(static_cast<Token>(token), true);
  }
  respond(exchange, {{"content", std::move(text)}});
}

void apply_template(Service& service, const ExchangePointer& exchange) {
  const Json body = parse_object(exchange->request().body);
  const Fields fields(body);
  respond(exchange, {{"prompt", chat_text(service, messages_from(fields), chat_options_from(fields))}});
}

}  // namespace tidal::server
