#include "server/api/completion_reply.h"

#include "server/api/apis.h"
#include "server/api/logprobs.h"
#include "server/api/read_events.h"
#include "server/api/request.h"
#include "server/api/tools.h"
#include "server/error.h"

namespace tidal::server {
CompletionForm form_from(const Fields& fields) {
  CompletionForm form;
  form.stream = fields.boolean("stream").value_or(false);
  if (const Json* options = fields.object("stream_options")) {
    form.include_usage = Fields(*options, "stream_options.").boolean("include_usage").value_or(false);
  }
  return form;
}

CompletionReply::CompletionReply(Service& service, std::shared_ptr<http::Exchange> exchange, const CompletionForm& form,
                                 size_t choices, size_t prompts)
    : service_(service),
      exchange_(std::move(exchange)),
      form_(form),
      id_(new_id(form.chat ? "chatcmpl-" : "cmpl-")),
      created_(now()),
      prompts_(prompts),
      choices_(choices),
      left_(choices) {
  if (!form_.format) return;
  for (Choice& choice : choices_) choice.parts.emplace(form_.format, new_id("").substr(0, 16));
}

void CompletionReply::open() {
  std::call_once(opened_, [this] {
    if (form_.stream) stream_ = service_.open_stream(exchange_);
  });
}

Json CompletionReply::frame(bool chunk) const {
  const char* object = !form_.chat ? "text_completion" : chunk ? "chat.completion.chunk" : "chat.completion";
  return {{"id", id_},
          {"object", object},
          {"created", created_},
          {"model", service_.parts().model},
          {"system_fingerprint", "tidal-" TIDAL_VERSION}};
}

void CompletionReply::send(size_t index, const Json& content, const Json& logprobs, const Json& finish_reason) {
  Json event = frame(true);
  Json choice{{"index", index}};
  choice[form_.chat ? "delta" : "text"] = content;
  choice["logprobs"] = logprobs;
  choice["finish_reason"] = finish_reason;
  event["choices"] = Json::array({choice});
  if (!finish_reason.is_null() && left_ == 0 && !form_.include_usage) {
    event["timings"] = timings(choices_[index].ending);
  }
  stream_->send(event);
}

void CompletionReply::begin(size_t index) {
  open();
  Choice& choice = choices_[index];
  if (choice.begun || !form_.stream) return;
  choice.begun = true;
  if (form_.chat) {
    send(index, {{"role", "assistant"}, {"content", nullptr}}, nullptr, nullptr);
  }
}

void CompletionReply::send(size_t index, const std::vector<ChatDelta>& deltas) {
  Choice& choice = choices_[index];
  for (const ChatDelta& delta : deltas) {
    // What tokens make is told only once it is certain; their probabilities come along.
    const std::vector<TokenLogprob> logprobs = std::exchange(choice.logprobs, {});
    send(index, delta_json(delta), form_.logprobs ? logprobs_json(logprobs, 0) : Json(), nullptr);
  }
}

const char* CompletionReply::reason(size_t index) const {
  const Choice& choice = choices_[index];
  const bool calls = choice.parts && !choice.parts->answer().calls.empty();
  return calls && choice.ending.natural() ? "tool_calls" : finish_reason(choice.ending);
}

void CompletionReply::piece(size_t index, const Piece& piece) {
  if (done_) return;
  begin(index);
  Choice& choice = choices_[index];
  const size_t offset = choice.text.size();
  if (choice.parts) {
    choice.logprobs.insert(choice.logprobs.end(), piece.logprobs.begin(), piece.logprobs.end());
    if (!form_.stream) return choice.parts->append(piece.text);
    return send(index, choice.parts->push(piece.text));
  }
  choice.text += piece.text;
  if (form_.stream) {
    const Json content = form_.chat ? Json{{"content", piece.text}} : Json(piece.text);
    send(index, content, form_.logprobs ? logprobs_json(piece.logprobs, offset) : Json(), nullptr);
  } else {
    choice.logprobs.insert(choice.logprobs.end(), piece.logprobs.begin(), piece.logprobs.end());
  }
}

void CompletionReply::ended(size_t index, const Ending& ending) {
  if (done_) return;
  begin(index);
  choices_[index].ending = ending;
  --left_;
  if (choices_[index].parts) {
    const std::vector<ChatDelta> deltas = choices_[index].parts->finish(ending.natural());
    if (form_.stream) send(index, deltas);
  }
  if (form_.stream) {
    send(index, form_.chat ? Json::object() : Json(""), nullptr, reason(index));
  }
  if (left_ == 0) finish();
}

void CompletionReply::reads(size_t index, const Reads& reads) {
  if (done_ || (reads.texts.empty() && !reads.step)) return;
  begin(index);
  Json event = frame(true);
  event["choices"] = Json::array();  // clients that know nothing of it pass over the event
  event["tidal"] = reads_json(index, reads);
  stream_->send(event);
}

void CompletionReply::failed(int status, const std::string& message) {
  if (done_) return;
  done_ = true;
  open();
  if (!form_.stream) return exchange_->respond(status, "application/json", error_body(status, message));
  stream_->send(Json::parse(error_body(status, message)));
  stream_->end(true);
}

Json CompletionReply::usage_json() const {
  // Every prompt once, with all its answers.
  Json sum;
  const size_t each = choices_.size() / prompts_;
  for (size_t prompt = 0; prompt < prompts_; ++prompt) {
    std::vector<Ending> endings;
    for (size_t i = 0; i < each; ++i) endings.push_back(choices_[prompt * each + i].ending);
    const Json one = usage(endings);
    if (sum.is_null()) {
      sum = one;
      continue;
    }
    for (const char* name : {"prompt_tokens", "completion_tokens", "total_tokens"}) {
      sum[name] = sum[name].get<int64_t>() + one[name].get<int64_t>();
    }
    Json& cached = sum["prompt_tokens_details"]["cached_tokens"];
    cached = cached.get<int64_t>() + one["prompt_tokens_details"]["cached_tokens"].get<int64_t>();
  }
  return sum;
}

void CompletionReply::finish() {
  done_ = true;
  if (form_.stream) {
    if (form_.include_usage) {
      // Some clients add up what every event says: usage and timings are said once, together.
      Json event = frame(true);
      event["choices"] = Json::array();
      event["usage"] = usage_json();
      event["timings"] = timings(choices_.front().ending);
      stream_->send(event);
    }
    stream_->end(true);
    return;
  }
  Json body = frame(false);
  body["choices"] = Json::array();
  for (size_t i = 0; i < choices_.size(); ++i) body["choices"].push_back(whole_choice(i));
  body["usage"] = usage_json();
  body["timings"] = timings(choices_.front().ending);
  respond(exchange_, body);
}

Json CompletionReply::whole_choice(size_t index) {
  const Choice& choice = choices_[index];
  Json json{{"index", index}};
  if (form_.chat) {
    json["message"] = message_json(choice.parts ? choice.parts->answer() : ChatAnswer{choice.text, "", {}});
  } else {
    json["text"] = choice.text;
  }
  json["logprobs"] = form_.logprobs ? logprobs_json(choice.logprobs, 0) : Json();
  json["finish_reason"] = reason(index);
  return json;
}

Json CompletionReply::logprobs_json(const std::vector<TokenLogprob>& logprobs, size_t offset) const {
  const Tokenizer& tokenizer = service_.tokenizer();
  if (form_.chat) return {{"content", logprobs_list(logprobs, tokenizer, false)}};
  Json tokens = Json::array(), values = Json::array(), top = Json::array(), offsets = Json::array();
  for (const TokenLogprob& one : logprobs) {
    const std::string text = tokenizer.piece(one.token, true);
    tokens.push_back(text);
    values.push_back(one.logprob);
    Json likeliest = Json::object();
    for (const auto& [token, logprob] : one.top) likeliest[tokenizer.piece(token, true)] = logprob;
    top.push_back(std::move(likeliest));
    offsets.push_back(offset);
    offset += text.size();
  }
  return {{"tokens", tokens}, {"token_logprobs", values}, {"top_logprobs", top}, {"text_offset", offsets}};
}

}  // namespace tidal::server
