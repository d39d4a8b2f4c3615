// From the messages of a chat request to a prompt.
#pragma once

#include <string>
#include <vector>

#include "server/json.h"
#include "server/service.h"

namespace tidal::server {

/// The messages of `fields` (role, and content as a string or a list of text parts). Throws ApiError for what the model
/// cannot be told: other parts, other roles, none.
std::vector<ChatMessage> messages_from(const Fields& fields);
/// Their prompt by the chat template. Throws ApiError for a model without one and for what the template refuses.
std::string chat_prompt(const Service& service, const std::vector<ChatMessage>& messages);

}  // namespace tidal::server
