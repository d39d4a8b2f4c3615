// The conversation of a request to /v1/responses.
#pragma once

#include <vector>

#include "server/json.h"
#include "text/chat_template.h"

namespace tidal::server {

/// By the fields instructions and input: a text, or items, which are messages, calls of functions, their outputs and
/// thoughts. What one answer was made of, thoughts and words and calls, becomes one message again. Throws ApiError for
/// other items and for what message_from() refuses.
std::vector<ChatMessage> response_messages_from(const Fields& fields);

}  // namespace tidal::server
