// Anthropic's requests: messages of blocks, tools by input_schema.
#pragma once

#include <vector>

#include "server/api/tools.h"
#include "server/json.h"

namespace tidal::server {

/// The conversation of a request, its system prompt first. Blocks: text, tool_use, tool_result, thinking. Throws
/// ApiError for others.
std::vector<ChatMessage> block_messages_from(const Fields& fields);
/// By the fields tools and tool_choice. Throws ApiError for tools of Anthropic's own and as chat_options_from() does.
ChatOptions block_options_from(const Fields& fields);

}  // namespace tidal::server
