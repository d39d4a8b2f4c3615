// The answers of /v1/completions and /v1/chat/completions, whole or as a stream.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "server/service.h"
#include "text/chat_answer.h"

namespace tidal::server {

struct CompletionForm {
  bool chat = false;  ///< messages instead of texts
  bool stream = false;
  bool include_usage = false;  ///< a last event with usage
  bool logprobs = false;
  std::shared_ptr<const AnswerFormat> format{};  ///< of a chat whose answers are more than content
};

/// By the fields stream and stream_options.
CompletionForm form_from(const Fields& fields);

/// Most likely tokens that are told beside each of an answer's.
inline constexpr int kMostTopLogprobs = 20;

/// Writes OpenAI's objects. One thread at a time, but for open().
class CompletionReply final : public Reply {
 public:
  /// `prompts`: index i answers prompt i / (choices / prompts).
  CompletionReply(Service& service, std::shared_ptr<http::Exchange> exchange, const CompletionForm& form,
                  size_t choices, size_t prompts);

  /// Begins a stream, once it is certain that there will be one.
  void open();

  void piece(size_t index, const Piece& piece) override;
  void ended(size_t index, const Ending& ending) override;
  bool takes_reads() const override { return form_.stream; }
  void reads(size_t index, const Reads& reads) override;
  void failed(int status, const std::string& message) override;

 private:
  struct Choice {
    std::string text;
    std::optional<ChatAnswerStream> parts;  // where the form has a format
    std::vector<TokenLogprob> logprobs;     // not sent yet
    bool begun = false;
    Ending ending;
  };

  Json frame(bool chunk) const;
  /// An event with one choice; `delta` or text as the form has it.
  void send(size_t index, const Json& content, const Json& logprobs, const Json& finish_reason);
  void begin(size_t index);
  /// Events for what is new of an answer with parts.
  void send(size_t index, const std::vector<ChatDelta>& deltas);
  const char* reason(size_t index) const;
  void finish();
  Json whole_choice(size_t index);
  Json logprobs_json(const std::vector<TokenLogprob>& logprobs, size_t offset) const;
  Json usage_json() const;

  Service& service_;
  std::shared_ptr<http::Exchange> exchange_;
  CompletionForm form_;
  std::string id_;
  int64_t created_;
  size_t prompts_;
  std::vector<Choice> choices_;
  size_t left_;
  bool done_ = false;
  std::once_flag opened_;
  std::shared_ptr<EventStream> stream_;
};

}  // namespace tidal::server
