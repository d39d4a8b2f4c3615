#include "eval/inspect.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <span>

#include "core/error.h"
#include "core/timer.h"
#include "core/utf8.h"
#include "engine/attention_probe.h"
#include "engine/exact.h"

namespace tidal {
namespace {

std::string trimmed(const std::string& text, const char* what) {
  const char* spaces = " \t\r\n";
  const size_t begin = text.find_first_not_of(spaces);
  if (begin == std::string::npos) fail("{}: it is empty, expected some text", what);
  std::string inner = text.substr(begin, text.find_last_not_of(spaces) + 1 - begin);
  if (const auto offset = find_invalid_utf8(inner)) {
    fail("{}: byte {} (0x{:02x}) is not valid UTF-8", what, begin + *offset,
         static_cast<unsigned char>(inner[*offset]));
  }
  return inner;
}

/// Softmax of `logits` at `token`.
double probability(std::span<const float> logits, Token token) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - top);
  return std::exp(logits[token] - top) / sum;
}

Token most_likely(std::span<const float> logits) {
  return static_cast<Token>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

/// Greedy until the model ends its answer.
class AnswerChooser final : public TokenChooser {
 public:
  explicit AnswerChooser(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}
  int likely() const override { return 1; }
  Token choose(const Prospects& next) override { return next.likely.front().token; }
  void begin_draft() override {}
  Token draft(const Prospects& next) override { return choose(next); }
  bool ends(Token token) const override { return tokenizer_.is_end(token); }

 private:
  const Tokenizer& tokenizer_;
};

/// One run: a sequence and the report that grows with it.
class Watch {
 public:
  Watch(Engine& engine, const Tokenizer& tokenizer, const InspectOptions& options)
      : engine_(engine), tokenizer_(tokenizer), options_(options), sequence_(engine.create()) {}

  Inspection run(const InspectPrompt& prompt);

 private:
  void describe_plan(int context);
  void prefill(std::span<const Token> tokens);
  void step(Token token);
  /// Answers by exact mode behind `sequence`, which holds the whole prompt; `token` is the answer's first one.
  void exact(Sequence& sequence, Token token, int most);
  void tell(const char* what, int done, int total) const {
    if (options_.progress) options_.progress(what, done, total);
  }
  std::string piece(Token token) const { return tokenizer_.piece(token, true); }

  Engine& engine_;
  const Tokenizer& tokenizer_;
  const InspectOptions& options_;
  Sequence sequence_;
  std::span<const float> logits_;
  std::unique_ptr<AttentionProbe> probe_;
  Inspection result_;
};

void Watch::describe_plan(int context) {
  InspectReport& report = result_.report;
  const Hyperparameters& hp = engine_.model().hp;
  Policy policy = engine_.plan().policy.at(context);
  if (engine_.plan().scans()) policy = scan_policy(policy, context);
  for (int l = 0; l < hp.layers; ++l) {
    std::string name = hp.recurs(l)      ? "recurrent"
                       : hp.reads_all(l) ? to_string(engine_.plan().roles[static_cast<size_t>(l)])
                                         : "window";
    name[0] -= 'a' - 'A';
    report.roles.push_back(std::move(name));
  }
  report.heads = hp.heads;
  report.unit = policy.scope == Scope::Head ? "head" : policy.scope == Scope::Kv ? "KV head" : "set";
  report.units = scope_units(policy.scope, hp.heads, hp.kv_heads);
  const Reserved reserved = reserved_positions(policy);
  report.sinks = reserved.sinks;
  report.recent = reserved.recent;
}

void Watch::prefill(std::span<const Token> tokens) {
  const int total = static_cast<int>(tokens.size());
  const Timer timer;
  logits_ = engine_.prefill(sequence_, tokens, [&](int done) {
    tell("prefill", done, total);
    return true;
  });
  result_.prefill_seconds = timer.seconds();
}

void Watch::step(Token token) {
  const Timer timer;
  logits_ = engine_.decode(sequence_, token);
  result_.decode_seconds += timer.seconds();
  InspectStep& step = result_.report.steps.emplace_back();
  const std::vector<Role>& roles = engine_.plan().roles;
  for (size_t layer = 0; layer < roles.size(); ++layer) {
    const LayerAttention& attention = probe_->layers()[layer];
    if (engine_.model().hp.recurs(static_cast<int>(layer))) {  // its state has seen all
      step.mass.insert(step.mass.end(), static_cast<size_t>(result_.report.heads), 1.0f);
      continue;
    }
    step.mass.insert(step.mass.end(), attention.mass.begin(), attention.mass.end());
    if (!selects(roles[layer])) continue;
    step.selected.push_back(attention.selected);
    step.selected.back().resize(result_.report.units);  // none while the context fits in the budget
  }
}

void Watch::exact(Sequence& sequence, Token token, int most) {
  AnswerChooser chooser(tokenizer_);
  // As many drafts in every round: what pays depends on the clock, and the page should not.
  ExactDecoder decoder(engine_, {.drafts = options_.exact_drafts, .adapt = false, .copy = false});
  std::vector<Token> answer = {token};
  while (!chooser.ends(answer.back()) && static_cast<int>(answer.size()) < most) {
    const auto more = decoder.advance(sequence, answer.back(), most - static_cast<int>(answer.size()), chooser);
    answer.insert(answer.end(), more.begin(), more.end());
    tell("exact mode", static_cast<int>(answer.size()), most);
  }
  if (chooser.ends(answer.back())) answer.pop_back();
  const ExactStatistics& statistics = decoder.statistics();
  result_.report.exact = {.tried = statistics.sparse.tried,
                          .accepted = statistics.sparse.accepted,
                          .rounds = statistics.rounds,
                          .answer = tokenizer_.decode(answer),
                          .same = false};
}

Inspection Watch::run(const InspectPrompt& prompt) {
  InspectReport& report = result_.report;
  const auto documents = static_cast<int>(prompt.document.size()), questions = static_cast<int>(prompt.question.size());
  const int answer = std::min(options_.answer, engine_.options().context - documents - questions);
  describe_plan(documents + questions);
  report.document = documents;
  report.question = questions;
  std::vector<Token> before = prompt.document, tokens = prompt.question;
  if (options_.dense_question) {
    before.insert(before.end(), tokens.begin(), tokens.end());
    tokens.clear();
  }
  report.first_step = static_cast<int>(before.size());
  for (const auto* part : {&prompt.document, &prompt.question}) {
    for (const Token token : *part) report.pieces.push_back(piece(token));
  }
  prefill(before);
  std::optional<Sequence> clean;
  if (options_.exact_drafts > 0) clean = sequence_.fork();
  const Token first = most_likely(logits_);  // of the answer, where the whole prompt was prefilled

  probe_ = std::make_unique<AttentionProbe>(engine_);
  const int most = static_cast<int>(tokens.size()) + answer;
  const auto progress = [&] { tell("decode", static_cast<int>(report.steps.size()), most - 1); };
  for (size_t i = 0; i < tokens.size(); ++i) {
    step(tokens[i]);
    if (i + 1 < tokens.size()) report.steps.back().probability = probability(logits_, tokens[i + 1]);
    progress();
  }
  for (int count = 0; count < answer; ++count) {
    const Token token = most_likely(logits_);
    if (!report.steps.empty()) report.steps.back().probability = probability(logits_, token);
    if (tokenizer_.is_end(token)) {
      report.end = piece(token);
      break;
    }
    report.pieces.push_back(piece(token));
    result_.answer += tokenizer_.piece(token);
    if (count + 1 == answer) break;
    step(token);
    progress();
  }
  probe_.reset();
  if (clean) {
    exact(*clean, tokens.empty() ? first : most_likely(engine_.prefill(*clean, tokens)), answer);
    report.exact->same = report.exact->answer == result_.answer;
  }
  return std::move(result_);
}

}  // namespace

InspectPrompt inspect_prompt(const Tokenizer& tokenizer, const std::string& document, const std::string& question,
                             bool chat) {
  const std::string first = trimmed(document, "document") + "\n\n", second = trimmed(question, "question");
  std::string text = first + second;
  size_t at = 0;
  if (chat) {
    text = tokenizer.apply_chat_template(std::vector<ChatMessage>{{"user", text}}, true);
    at = text.find(first + second);
    if (at == std::string::npos) fail("document: the model's chat template changes it, without the template it works");
  }
  // The tokens are those of the whole text; the question begins where the document alone would go on otherwise.
  const std::vector<Token> whole = tokenizer.encode(text, true, chat);
  const std::vector<Token> alone = tokenizer.encode(std::string_view(text).substr(0, at + first.size()), true, chat);
  const auto border = std::mismatch(whole.begin(), whole.end(), alone.begin(), alone.end()).first;
  InspectPrompt prompt;
  prompt.document.assign(whole.begin(), border);
  prompt.question.assign(border, whole.end());
  return prompt;
}

Inspection inspect(Engine& engine, const Tokenizer& tokenizer, const InspectPrompt& prompt,
                   const InspectOptions& options) {
  if (options.answer < 1) fail("inspect: an answer of {} tokens asked for, at least 1 is needed", options.answer);
  if (prompt.document.empty() || prompt.question.empty()) fail("inspect: document and question take a token each");
  const size_t needed = prompt.document.size() + prompt.question.size() + 1;
  if (needed > static_cast<size_t>(engine.options().context)) {
    fail("prompt: the document's {} tokens, the question's {} and an answer do not fit in a context of {}",
         prompt.document.size(), prompt.question.size(), engine.options().context);
  }
  return Watch(engine, tokenizer, options).run(prompt);
}

}  // namespace tidal
