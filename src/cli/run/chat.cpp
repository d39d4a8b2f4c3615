#include "cli/run/chat.h"

#include <algorithm>

#include "core/utf8.h"

namespace tidal {
namespace {

/// `text` without an incomplete character at its end, as an interrupted answer may have.
std::string whole_characters(const std::string& text) { return Utf8Stream().push(text); }

}  // namespace

Chat::Chat(Generator& generator, const Tokenizer& tokenizer, const std::string& system)
    : generator_(generator), tokenizer_(tokenizer) {
  if (!system.empty()) system_.push_back({"system", system});
  messages_ = system_;
  std::vector<ChatMessage> probe = system_;
  probe.push_back({"user", "?"});
  tokenizer.apply_chat_template(probe, true);
}

Answer Chat::say(const std::string& message, int most, const Generator::Listener& listener) {
  messages_.push_back({"user", message});
  Answer answer;
  std::string text;
  try {
    text = tokenizer_.apply_chat_template(messages_, true);
    answer = generator_.answer(new_tokens(text), most, listener);
  } catch (...) {
    messages_.pop_back();
    cached_.clear();
    throw;
  }
  if (answer.end == AnswerEnd::NotStarted) {
    messages_.pop_back();
    return answer;
  }
  messages_.push_back({"assistant", whole_characters(answer.text)});
  cached_ = text + messages_.back().content;
  return answer;
}

std::vector<Token> Chat::new_tokens(const std::string& text) {
  // The tokens of an answer stay as they were sampled, even where the tokenizer would divide its text in another way.
  if (!cached_.empty() && text.starts_with(cached_)) {
    return tokenizer_.encode(text.substr(cached_.size()), false, true);
  }
  // The first message, or a template that changes what it said before: go on from the last common token.
  const std::vector<Token> all = tokenizer_.encode(text, true, true);
  const auto cached = generator_.tokens();
  const auto common = std::mismatch(all.begin(), all.end(), cached.begin(), cached.end()).first - all.begin();
  const auto kept = std::min<ptrdiff_t>(common, static_cast<ptrdiff_t>(all.size()) - 1);  // one token for the logits
  cached_.clear();
  generator_.truncate(static_cast<int>(kept));
  return {all.begin() + kept, all.end()};
}

void Chat::clear() {
  messages_ = system_;
  cached_.clear();
  generator_.truncate(0);
}

}  // namespace tidal
