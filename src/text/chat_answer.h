// What a chat answer's text holds: words for the reader, thoughts, calls of tools; whole, and part by part.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/chat_template.h"

namespace tidal {

struct ChatAnswer {
  std::string content;
  std::string reasoning;
  std::vector<ChatToolCall> calls;  ///< their ids are "" where the model gives none
};

/// How one model writes answers: a template's way of marking thoughts and calls. May be used by several threads at
/// once.
class AnswerFormat {
 public:
  virtual ~AnswerFormat() = default;
  /// The parts of `text`. `partial`: more may follow, so what may yet become a mark is in none of them. Throws Error
  /// for a text that is not of this format.
  virtual ChatAnswer parse(const std::string& text, bool partial) const = 0;
};

/// What came new into an answer.
struct ChatDelta {
  enum class Kind { Reasoning, Content, CallBegins, CallArguments };
  Kind kind = Kind::Content;
  std::string text;       ///< appended to the reasoning, the content, the arguments; the name of a call that begins
  size_t call = 0;        ///< of a call: its index
  std::string call_id{};  ///< of a call that begins; never ""
};

/// An answer that comes piece by piece. What it has given is never taken back.
class ChatAnswerStream {
 public:
  /// `id_seed`: what tells this answer's calls from those of others, such as a random number in hexadecimal.
  ChatAnswerStream(std::shared_ptr<const AnswerFormat> format, std::string id_seed)
      : format_(std::move(format)), id_seed_(std::move(id_seed)) {}

  /// Adds text without looking at it: push() and finish() do. Of an answer that is wanted whole.
  void append(std::string_view text);
  /// `text` in whole characters. A long answer is not read anew for every piece, so that the work for it all stays
  /// within a constant times its length times the logarithm of that.
  std::vector<ChatDelta> push(std::string_view text);
  /// No more comes. `whole`: the answer ended by itself. A text that is not of the format is content as it stands.
  std::vector<ChatDelta> finish(bool whole);
  /// What all deltas make together.
  const ChatAnswer& answer() const { return given_; }

 private:
  std::vector<ChatDelta> advance(const ChatAnswer& now, bool last);
  std::vector<ChatDelta> give_text(const std::string& now, std::string& given, ChatDelta::Kind kind, bool last) const;

  std::shared_ptr<const AnswerFormat> format_;
  std::string id_seed_;
  std::string text_;
  size_t read_ = 0;      // bytes of text_ when it was last parsed
  size_t checked_ = 0;   // bytes whose brackets are counted
  size_t readable_ = 0;  // bytes before brackets nest too deeply for the parser, which calls itself for them
  int depth_ = 0;
  bool too_deep_ = false;
  ChatAnswer given_;
};

}  // namespace tidal
