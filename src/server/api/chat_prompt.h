// From the messages of a chat request to a prompt.
#pragma once

#include <string>
#include <vector>

#include "server/json.h"
#include "server/service.h"

namespace tidal::server {

/// A content: a string, or a list of text parts, which become lines. Throws ApiError for other parts.
std::string content_text(const Json& content, const std::string& path);
/// One message of a conversation, `before` it those that came earlier: role and content, calls of tools and their
/// results, reasoning_content. Throws ApiError for what the model cannot be told.
ChatMessage message_from(const Fields& message, const std::vector<ChatMessage>& before);
/// The field `messages`. Throws ApiError as message_from() does, and when there are none.
std::vector<ChatMessage> messages_from(const Fields& fields);
/// The tool that the call `id` is of; "" when there was no such call.
std::string name_of_call(const std::vector<ChatMessage>& messages, const std::string& id);
/// Their prompt by the chat template; words of the assistant at the end are where its answer begins. Throws ApiError
/// for a model without one and for what the template refuses. `variables`: further ones of the template, a JSON object
/// or "". `begin_answer`: ends where the assistant's words begin.
std::string chat_prompt(const Service& service, const std::vector<ChatMessage>& messages,
                        const std::string& variables = "", bool begin_answer = true);

}  // namespace tidal::server
