// Tools in chat requests and calls in answers, as OpenAI's chat completions have them.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "server/json.h"
#include "server/service.h"
#include "text/tool_chat.h"

namespace tidal::server {

/// What a request says of tools and of how it is to be rendered.
struct ChatOptions {
  std::vector<ChatTool> tools{};  ///< none when the choice is
  ToolChoice choice = ToolChoice::None;
  std::optional<bool> parallel{};
  std::string variables{};   ///< chat_template_kwargs, "" for none
  bool reasoning = true;     ///< thoughts are told from the content
  bool begin_answer = true;  ///< the prompt ends where the assistant's words begin
};

/// Where a request says what a function is: in a field `function`, or beside the tool's type, as responses have it.
enum class ToolForm { Nested, Flat };

/// By the fields tools, tool_choice, parallel_tool_calls, chat_template_kwargs, add_generation_prompt,
/// continue_final_message and reasoning_format. Throws ApiError for tools that are no functions, for names twice or of
/// odd characters, and for more than 128 tools or 64 KiB each.
ChatOptions chat_options_from(const Fields& fields, ToolForm form = ToolForm::Nested);
/// Adds a tool after the same checks. `path`: what errors call it.
void add_tool(ChatOptions& options, ChatTool tool, const Json* parameters, const std::string& path);
/// Leaves the tool of this name alone, which is required. Throws ApiError when there is none.
void require_tool(ChatOptions& options, const std::string& name, const std::string& path);

/// A call with this name and these arguments. Throws ApiError for a name that no tool may have and as call_arguments()
/// does.
ChatToolCall call_from(std::string id, const Fields& function);
/// The calls of an assistant's message. Throws ApiError for what is no call of a function and for arguments that are
/// not JSON.
std::vector<ChatToolCall> calls_from(const Fields& message);
/// Arguments as text: {} for none. Throws ApiError unless they are JSON of at most 64 levels.
std::string call_arguments(const Json* given, const std::string& path);

/// The prompt of a conversation, for Tokenizer::encode() with `add_special`. Throws ApiError for a model without a
/// template and for what it refuses.
std::string chat_text(const Service& service, std::vector<ChatMessage> messages, const ChatOptions& options);
/// Sets the prompt of `generation`, which is that of chat_text(), and what holds its answer to calls; returns how the
/// answer is read, null where it is content alone. Throws ApiError as chat_text() does.
std::shared_ptr<const AnswerFormat> prepare_chat(const Service& service, std::vector<ChatMessage> messages,
                                                 const ChatOptions& options, Generation& generation);

/// A part of an answer as a delta's fields.
Json delta_json(const ChatDelta& delta);
/// The fields of a message: role, content (null beside calls when there is none), reasoning_content, tool_calls.
Json message_json(const ChatAnswer& answer);

}  // namespace tidal::server
