// The endpoints, a function each: from a request to its answer. Those that take text run on a worker thread; all throw
// ApiError.
#pragma once

#include <memory>

#include "server/http/http_server.h"
#include "server/json.h"
#include "server/service.h"

namespace tidal::server {

using ExchangePointer = std::shared_ptr<http::Exchange>;

/// 200 with JSON.
inline void respond(const ExchangePointer& exchange, const Json& body) {
  exchange->respond(200, "application/json", dump(body));
}

void chat_completions(Service& service, const ExchangePointer& exchange);
void completions(Service& service, const ExchangePointer& exchange);
void native_completions(Service& service, const ExchangePointer& exchange);
void messages(Service& service, const ExchangePointer& exchange);
void count_chat_tokens(Service& service, const ExchangePointer& exchange);
void count_tokens(Service& service, const ExchangePointer& exchange);
void responses(Service& service, const ExchangePointer& exchange);

void tokenize(Service& service, const ExchangePointer& exchange);
void detokenize(Service& service, const ExchangePointer& exchange);
void apply_template(Service& service, const ExchangePointer& exchange);

void models(Service& service, const ExchangePointer& exchange);
void props(Service& service, const ExchangePointer& exchange);
void slots(Service& service, const ExchangePointer& exchange);
void metrics(Service& service, const ExchangePointer& exchange);

}  // namespace tidal::server
