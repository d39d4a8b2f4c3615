// POST /completion: llama-server's own API.
#include <mutex>

#include "server/api/apis.h"
#include "server/api/completion_reply.h"
#include "server/api/logprobs.h"
#include "server/api/prompt_list.h"
#include "server/api/request.h"
#include "server/error.h"

namespace tidal::server {
namespace {

struct NativeForm {
  bool stream = false;
  bool list = false;    ///< several prompts were asked about, so several answers come
  bool tokens = false;  ///< a whole answer has its tokens, too
  bool probabilities = false;
  Json settings{};                     ///< generation_settings
  std::vector<std::string> prompts{};  ///< as text
};

const char* stop_type(JobEnd end) {
  return end == JobEnd::EndToken ? "eos" : end == JobEnd::Stopped ? "word" : "limit";
}

class NativeReply final : public Reply {
 public:
  NativeReply(Service& service, ExchangePointer exchange, NativeForm form)
      : service_(service),
        exchange_(std::move(exchange)),
        form_(std::move(form)),
        answers_(form_.prompts.size()),
        left_(answers_.size()) {}

  /// Begins a stream, once it is certain that there will be one.
  void open() {
    std::call_once(opened_, [this] {
      if (form_.stream) stream_ = service_.open_stream(exchange_);
    });
  }

  void piece(size_t index, const Piece& piece) override {
    if (done_) return;
    open();
    Answer& answer = answers_[index];
    answer.new_line = answer.new_line || piece.text.find('\n') != std::string::npos;
    answer.predicted += piece.tokens.size();
    if (form_.stream) {
      Json event{{"index", index}, {"content", piece.text}, {"tokens", piece.tokens},
                 {"stop", false},  {"id_slot", index},      {"tokens_predicted", answer.predicted}};
      if (form_.probabilities) event["completion_probabilities"] = probabilities(piece.logprobs);
      return stream_->send(event);
    }
    answer.text += piece.text;
    answer.tokens.insert(answer.tokens.end(), piece.tokens.begin(), piece.tokens.end());
    answer.logprobs.insert(answer.logprobs.end(), piece.logprobs.begin(), piece.logprobs.end());
  }

  void ended(size_t index, const Ending& ending) override {
    if (done_) return;
    open();
    answers_[index].whole = whole(index, ending);
    if (form_.stream) stream_->send(answers_[index].whole);
    if (--left_ > 0) return;
    done_ = true;
    if (form_.stream) return stream_->end(false);
    if (!form_.list) return respond(exchange_, answers_.front().whole);
    Json all = Json::array();
    for (Answer& answer : answers_) all.push_back(std::move(answer.whole));
    respond(exchange_, all);
  }

  void failed(int status, const std::string& message) override {
    if (done_) return;
    done_ = true;
    open();
    if (!form_.stream) return exchange_->respond(status, "application/json", error_body(status, message));
    stream_->send(Json::parse(error_body(status, message)));
    stream_->end(false);
  }

 private:
  struct Answer {
    std::string text;
    std::vector<Token> tokens;
    std::vector<TokenLogprob> logprobs;
    size_t predicted = 0;
    bool new_line = false;
    Json whole;
  };

  Json whole(size_t index, const Ending& ending) {
    Answer& answer = answers_[index];
    Json json{{"index", index},
              {"content", answer.text},
              {"tokens", form_.tokens ? Json(answer.tokens) : Json::array()},
              {"id_slot", index},
              {"stop", true},
              {"model", service_.parts().model},
              {"tokens_predicted", ending.tokens},
              {"tokens_evaluated", ending.report.prompt_tokens},
              {"generation_settings", form_.settings},
              {"prompt", form_.prompts[index]},
              {"has_new_line", answer.new_line},
              {"truncated", ending.end == JobEnd::ContextFull},
              {"stop_type", stop_type(ending.end)},
              {"stopping_word", ending.stop},
              {"tokens_cached", ending.report.cached_tokens},
              {"timings", timings(ending)}};
    if (form_.probabilities && !form_.stream) json["completion_probabilities"] = probabilities(answer.logprobs);
    return json;
  }

  Json probabilities(const std::vector<TokenLogprob>& logprobs) const {
    return logprobs_list(logprobs, service_.tokenizer(), true);
  }

  Service& service_;
  ExchangePointer exchange_;
  NativeForm form_;
  std::vector<Answer> answers_;
  size_t left_;
  bool done_ = false;
  std::once_flag opened_;
  std::shared_ptr<EventStream> stream_;
};

Json settings_of(const Generation& generation, const NativeForm& form) {
  const SamplerOptions& sampler = generation.sampler;
  Json biases = Json::array();
  for (const auto& [token, bias] : sampler.logit_bias) biases.push_back({{"token", token}, {"bias", bias}});
  return {{"n_predict", generation.most},
          {"max_tokens", generation.most},
          {"seed", sampler.seed},
          {"temperature", sampler.temperature},
          {"top_k", sampler.top_k},
          {"top_p", sampler.top_p},
          {"min_p", sampler.min_p},
          {"repeat_penalty", sampler.repeat_penalty},
          {"repeat_last_n", sampler.repeat_last_n},
          {"frequency_penalty", sampler.frequency_penalty},
          {"presence_penalty", sampler.presence_penalty},
          {"ignore_eos", sampler.ignore_end},
          {"logit_bias", std::move(biases)},
          {"grammar", sampler.grammar},
          {"stop", generation.stops},
          {"stream", form.stream},
          {"n_probs", std::max(generation.top_logprobs, 0)}};
}

}  // namespace

void native_completions(Service& service, const ExchangePointer& exchange) {
  const Json body = parse_object(exchange->request().body);
  const Fields fields(body);
  Generation generation = generation_from(fields, service);
  NativeForm form;
  form.stream = fields.boolean("stream").value_or(false);
  form.tokens = fields.boolean("return_tokens").value_or(false);
  if (const auto most = fields.integer("n_probs", 0, kMostTopLogprobs); most.value_or(0) > 0) {
    form.probabilities = true;
    generation.top_logprobs = static_cast<int>(*most);
    if (fields.boolean("post_sampling_probs").value_or(false)) {
      refuse("post_sampling_probs", "'post_sampling_probs': this server gives those before sampling alone");
    }
  }
  form.settings = settings_of(generation, form);
  const auto prompts = prompts_from(fields, service.tokenizer(), PromptParts::Mixed);
  form.list = prompts.size() > 1;
  std::vector<Generation> generations;
  for (const std::vector<Token>& prompt : prompts) {
    std::string text;
    for (const Token token : prompt) text += service.tokenizer().piece(token, true);
    form.prompts.push_back(std::move(text));
    generations.push_back(generation);
    generations.back().prompt = prompt;
  }
  const auto reply = std::make_shared<NativeReply>(service, exchange, std::move(form));
  service.start(std::move(generations), reply, exchange);
  reply->open();
}

}  // namespace tidal::server
