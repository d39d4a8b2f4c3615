// A chat: messages and answers in one cached conversation.
#pragma once

#include <string>
#include <vector>

#include "generation/generator.h"

namespace tidal {

class Chat {
 public:
  /// `system`: the system message, "" for none. The others must outlive the chat. Throws Error when the model has no
  /// chat template that can be applied.
  Chat(Generator& generator, const Tokenizer& tokenizer, const std::string& system);

  /// Answers a message of the user; see Generator::answer(). Only what is new is prefilled. On an Error, and when it is
  /// interrupted before the answer starts, the message is forgotten.
  Answer say(const std::string& message, int most, const Generator::Listener& listener);
  /// Forgets everything but the system message.
  void clear();

 private:
  /// Tokens that the cached conversation lacks for `text`, the whole of it.
  std::vector<Token> new_tokens(const std::string& text);

  Generator& generator_;
  const Tokenizer& tokenizer_;
  std::vector<ChatMessage> system_;    // at most one
  std::vector<ChatMessage> messages_;  // system first
  std::string cached_;                 // the text of the conversation so far, last answer included; "" when not known
};

}  // namespace tidal
