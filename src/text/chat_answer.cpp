#include "text/chat_answer.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/error.h"

namespace tidal {
namespace {

constexpr int kMostDepth = 200;
constexpr size_t kReadAtOnce = size_t{4} << 10;  // bytes up to which every piece is parsed when it comes
constexpr size_t kGrowth = 64;                   // beyond: when the text is longer by a 64th

constexpr std::string_view kSpace = " \t\r\n";

void trim_begin(std::string& text) { text.erase(0, std::min(text.find_first_not_of(kSpace), text.size())); }
void trim_end(std::string& text) { text.erase(text.find_last_not_of(kSpace) + 1); }  // npos + 1 is 0

/// Formats differ in whose the white space around their marks is: nobody's.
ChatAnswer without_space(ChatAnswer answer) {
  trim_begin(answer.reasoning);
  trim_end(answer.reasoning);
  if (!answer.reasoning.empty()) trim_begin(answer.content);
  if (!answer.calls.empty()) trim_end(answer.content);
  return answer;
}

}  // namespace

void ChatAnswerStream::append(std::string_view text) {
  text_ += text;
  for (; checked_ < text_.size() && !too_deep_; ++checked_) {
    const char byte = text_[checked_];
    if (byte == '[' || byte == '{') ++depth_;
    if (byte == ']' || byte == '}') depth_ = std::max(depth_ - 1, 0);
    if (depth_ > kMostDepth) {
      too_deep_ = true;
      readable_ = checked_;
    }
  }
}

std::vector<ChatDelta> ChatAnswerStream::push(std::string_view text) {
  append(text);
  if (text.empty() || too_deep_) return {};
  if (text_.size() > kReadAtOnce && (text_.size() - read_) * kGrowth < text_.size()) return {};
  read_ = text_.size();
  try {
    return advance(without_space(format_->parse(text_, true)), false);
  } catch (const Error&) {
    return {};  // the next piece may make sense of it, else finish() does
  }
}

std::vector<ChatDelta> ChatAnswerStream::finish(bool whole) {
  const std::string readable = too_deep_ ? text_.substr(0, readable_) : text_;
  for (const bool partial : {!whole || too_deep_, true}) {
    try {
      const ChatAnswer now = without_space(format_->parse(readable, partial));
      if (now.content.empty() && now.reasoning.empty() && now.calls.empty() && partial && whole) break;
      return advance(now, true);
    } catch (const Error&) {  // the next try is more lenient
    }
  }
  if (!given_.calls.empty() || !given_.reasoning.empty()) return {};
  return advance({.content = text_, .reasoning = {}, .calls = {}}, true);
}

std::vector<ChatDelta> ChatAnswerStream::give_text(const std::string& now, std::string& given, ChatDelta::Kind kind,
                                                   bool last) const {
  // White space before a mark may be dropped yet: it is given once something follows it.
  const size_t end = last ? now.size() : now.find_last_not_of(kSpace) + 1;
  if (end <= given.size() || !now.starts_with(given)) return {};
  std::string text = now.substr(given.size(), end - given.size());
  given += text;
  return {{.kind = kind, .text = std::move(text)}};
}

std::vector<ChatDelta> ChatAnswerStream::advance(const ChatAnswer& now, bool last) {
  using Kind = ChatDelta::Kind;
  std::vector<ChatDelta> deltas = give_text(now.reasoning, given_.reasoning, Kind::Reasoning, last);
  for (ChatDelta& delta : give_text(now.content, given_.content, Kind::Content, last)) {
    deltas.push_back(std::move(delta));
  }
  for (size_t i = 0; i < now.calls.size(); ++i) {
    const ChatToolCall& call = now.calls[i];
    if (i == given_.calls.size()) {
      // A name can still grow until something comes behind it.
      const bool settled = !call.arguments.empty() || i + 1 < now.calls.size() || last;
      if (call.name.empty() || !settled) break;
      const std::string id = call.id.empty() ? fmt::format("call_{}{:02}", id_seed_, i) : call.id;
      given_.calls.push_back({id, call.name, ""});
      deltas.push_back({.kind = Kind::CallBegins, .text = call.name, .call = i, .call_id = id});
    }
    std::string& given = given_.calls[i].arguments;
    if (call.arguments.size() <= given.size() || !call.arguments.starts_with(given)) continue;
    std::string text = call.arguments.substr(given.size());
    given += text;
    deltas.push_back({.kind = Kind::CallArguments, .text = std::move(text), .call = i});
  }
  return deltas;
}

}  // namespace tidal
