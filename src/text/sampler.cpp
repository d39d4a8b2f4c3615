#include "text/sampler.h"

#include <llama.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/error.h"
#include "core/utf8.h"
#include "text/llama_log.h"

namespace tidal {
namespace {

constexpr float kImpossible = -std::numeric_limits<float>::infinity();

using LlamaSampler = std::unique_ptr<llama_sampler, void (*)(llama_sampler*)>;

void check(const SamplerOptions& options) {
  // Written so that NaN fails too.
  const auto need = [](bool holds, const char* what, float value, const char* expected) {
    if (!holds) fail("{}: {} given, expected {}", what, value, expected);
  };
  need(std::isfinite(options.temperature), "temperature", options.temperature, "a number");
  need(options.top_p >= 0 && options.top_p <= 1, "top-p", options.top_p, "0 to 1");
  need(options.min_p >= 0 && options.min_p <= 1, "min-p", options.min_p, "0 to 1");
  need(options.repeat_penalty > 0 && std::isfinite(options.repeat_penalty), "repeat penalty", options.repeat_penalty,
       "a number above 0");
  need(std::isfinite(options.frequency_penalty), "frequency penalty", options.frequency_penalty, "a number");
  need(std::isfinite(options.presence_penalty), "presence penalty", options.presence_penalty, "a number");
  if (options.repeat_last_n < 0) fail("repeat-last-n: {} given, expected 0 or more", options.repeat_last_n);
}

void check_bias(const Tokenizer& tokenizer, const SamplerOptions& options) {
  for (const auto& [token, bias] : options.logit_bias) {
    if (token < 0 || token >= tokenizer.vocab_size()) {
      fail("logit bias: token {} is outside the vocabulary of {}", token, tokenizer.vocab_size());
    }
    if (std::isnan(bias) || bias == -kImpossible) fail("logit bias: {} for token {}, expected a number", bias, token);
  }
}

LlamaSampler make_chain(const Tokenizer& tokenizer, const SamplerOptions& options) {
  LlamaSampler chain(llama_sampler_chain_init(llama_sampler_chain_default_params()), llama_sampler_free);
  const auto add = [&](llama_sampler* sampler) { llama_sampler_chain_add(chain.get(), sampler); };
  std::vector<llama_logit_bias> biases;
  for (const auto& [token, bias] : options.logit_bias) biases.push_back({token, bias});
  for (Token token = 0; options.ignore_end && token < tokenizer.vocab_size(); ++token) {
    if (tokenizer.is_end(token)) biases.push_back({token, kImpossible});
  }
  if (!biases.empty()) {
    add(llama_sampler_init_logit_bias(tokenizer.vocab_size(), static_cast<int32_t>(biases.size()), biases.data()));
  }
  if (options.has_penalties()) {
    add(llama_sampler_init_penalties(tokenizer.vocab_size(), options.repeat_last_n, options.repeat_penalty,
                                     options.frequency_penalty, options.presence_penalty));
  }
  if (options.temperature <= 0) {
    add(llama_sampler_init_greedy());
    return chain;
  }
  constexpr size_t kLeast = 1;  // candidates that top-p and min-p leave
  if (options.top_k > 0) add(llama_sampler_init_top_k(options.top_k));
  if (options.top_p < 1) add(llama_sampler_init_top_p(options.top_p, kLeast));
  if (options.min_p > 0) add(llama_sampler_init_min_p(options.min_p, kLeast));
  add(llama_sampler_init_temp(options.temperature));
  add(llama_sampler_init_dist(options.seed));
  return chain;
}

int likely_of(const Tokenizer& tokenizer, const SamplerOptions& options) {
  if (options.has_penalties() || !options.grammar.empty() || !options.logit_bias.empty()) return 0;
  int count = options.temperature <= 0 ? 1 : options.top_k;
  if (count <= 0) return 0;
  count = std::min(count, tokenizer.vocab_size());
  if (options.ignore_end) {
    // Those that are ruled out may be among them.
    for (Token token = 0; token < tokenizer.vocab_size(); ++token) count += tokenizer.is_end(token);
  }
  return count <= kMostLikely ? std::min(count, tokenizer.vocab_size()) : 0;
}

/// What the prompt holds of the text that a grammar is of.
void begin_grammar(llama_sampler* grammar, const std::vector<Token>& prefix) {
  try {
    for (const Token token : prefix) llama_sampler_accept(grammar, token);
  } catch (const std::exception& error) {
    fail("grammar: it does not allow what the prompt ends with: {}", error.what());
  }
}

/// Throws Error for groups in groups beyond a depth: libllama's parser calls itself for each, on a stack that ends.
void check_nesting(std::string_view grammar) {
  constexpr int kMostGroups = 200;
  int depth = 0;
  for (size_t i = 0; i < grammar.size(); ++i) {
    const char begin = grammar[i];
    const char* end = begin == '"' ? "\"" : begin == '[' ? "]" : begin == '<' ? ">" : begin == '#' ? "\r\n" : nullptr;
    if (end) {  // what holds text, in which a bracket is none
      const std::string_view ends = end;
      for (++i; i < grammar.size() && ends.find(grammar[i]) == std::string_view::npos; ++i) {
        if (grammar[i] == '\\' && (begin == '"' || begin == '[')) ++i;
      }
    } else if (begin == '(' && ++depth > kMostGroups) {
      fail("grammar: its groups nest more than {} deep", kMostGroups);
    } else if (begin == ')') {
      --depth;
    }
  }
}

LlamaSampler make_grammar(const Tokenizer& tokenizer, const SamplerOptions& options) {
  LlamaSampler grammar(nullptr, llama_sampler_free);
  const std::string& text = options.grammar;
  if (text.empty()) return grammar;
  check_text(text, "grammar");  // libllama reads it up to a NUL
  check_nesting(text);
  std::vector<const char*> patterns;
  for (const std::string& pattern : options.grammar_patterns) patterns.push_back(pattern.c_str());
  std::string reason;
  {
    const LlamaErrors logged;
    const CapturedStderr printed;
    try {
      if (patterns.empty() && options.grammar_tokens.empty()) {
        grammar.reset(llama_sampler_init_grammar(tokenizer.vocab(), text.c_str(), "root"));
      } else {
        grammar.reset(llama_sampler_init_grammar_lazy_patterns(tokenizer.vocab(), text.c_str(), "root", patterns.data(),
                                                               patterns.size(), options.grammar_tokens.data(),
                                                               options.grammar_tokens.size()));
      }
      reason = printed.text().empty() ? logged.first() : printed.text();
    } catch (const std::exception& error) {
      reason = error.what();
    }
  }
  if (!grammar) fail("grammar: {}", reason.empty() ? "it is not valid GBNF with a rule 'root'" : reason);
  begin_grammar(grammar.get(), options.grammar_prefix);
  return grammar;
}

/// Whether an answer is in the thought that it began with: what it quotes there is no trigger.
class Thought {
 public:
  explicit Thought(const SamplerOptions& options)
      : begin_(options.thought_begin), end_(options.thought_end), starts_inside_(options.in_thought) {
    restart();
  }

  void restart() {
    text_.clear();
    where_ = end_.empty() ? Where::Outside : starts_inside_ ? Where::Inside : Where::Unknown;
    if (where_ == Where::Unknown && begin_.empty()) where_ = Where::Outside;
  }
  bool inside() const { return where_ == Where::Inside; }
  bool over() const { return where_ == Where::Outside; }

  void add(const std::string& piece) {
    text_ += piece;
    if (where_ == Where::Unknown) {
      text_.erase(0, std::min(text_.find_first_not_of(" \t\r\n"), text_.size()));
      if (text_.size() < begin_.size() && begin_.starts_with(text_)) return;
      where_ = text_.starts_with(begin_) ? Where::Inside : Where::Outside;
      return;
    }
    if (text_.find(end_) != std::string::npos) where_ = Where::Outside;
    if (text_.size() > end_.size()) text_.erase(0, text_.size() - end_.size());
  }

 private:
  enum class Where { Unknown, Inside, Outside };

  std::string begin_, end_;
  bool starts_inside_;
  std::string text_;  // what may hold the beginning of a mark
  Where where_ = Where::Outside;
};

}  // namespace

struct Sampler::State {
  LlamaSampler chain, grammar;
  int likely = 0;
  std::vector<Token> prefix;  // the grammar's
  Thought thought;
  const Tokenizer* tokenizer;
  std::vector<llama_token_data> candidates;

  void set(size_t index, Token token, float logit) {
    if (std::isnan(logit)) fail("logits: that of token {} is not a number; the model may be damaged", token);
    candidates[index] = {token, logit, 0.0f};
  }

  llama_token_data_array fill(std::span<const float> logits) {
    candidates.resize(logits.size());
    for (size_t i = 0; i < logits.size(); ++i) set(i, static_cast<Token>(i), logits[i]);
    return {candidates.data(), candidates.size(), -1, false};
  }

  llama_token_data_array fill(std::span<const LikelyToken> tokens) {
    candidates.resize(tokens.size());
    for (size_t i = 0; i < tokens.size(); ++i) set(i, tokens[i].token, tokens[i].logit);
    // A bias for what ends the answer would be overlooked in a sorted array.
    return {candidates.data(), candidates.size(), -1, false};
  }

  Token choose(llama_token_data_array& array) const {
    llama_sampler_apply(chain.get(), &array);
    if (array.selected < 0 || static_cast<size_t>(array.selected) >= array.size) fail("sampler: it chose no token");
    const llama_token_data& chosen = array.data[array.selected];
    if (chosen.logit == kImpossible)
      fail("sampler: no token can continue the text; the grammar or the logits rule out all");
    return chosen.id;
  }

  bool allows(Token token) const {
    llama_token_data one{token, 1.0f, 0.0f};
    llama_token_data_array array{&one, 1, -1, false};
    llama_sampler_apply(grammar.get(), &array);
    return array.data[0].logit != kImpossible;
  }
};

Sampler::Sampler(const Tokenizer& tokenizer, const SamplerOptions& options) {
  check(options);
  check_bias(tokenizer, options);
  state_ = std::make_unique<State>(State{make_chain(tokenizer, options),
                                         make_grammar(tokenizer, options),
                                         likely_of(tokenizer, options),
                                         options.grammar_prefix,
                                         Thought(options),
                                         &tokenizer,
                                         {}});
}

Sampler::Sampler(Sampler&&) noexcept = default;
Sampler& Sampler::operator=(Sampler&&) noexcept = default;
Sampler::~Sampler() = default;

Sampler Sampler::clone() const {
  const auto copy = [](const LlamaSampler& sampler) {
    return LlamaSampler(sampler ? llama_sampler_clone(sampler.get()) : nullptr, llama_sampler_free);
  };
  Sampler sampler;
  sampler.state_ = std::make_unique<State>(State{copy(state_->chain),
                                                 copy(state_->grammar),
                                                 state_->likely,
                                                 state_->prefix,
                                                 state_->thought,
                                                 state_->tokenizer,
                                                 {}});
  return sampler;
}

Token Sampler::sample(std::span<const float> logits) {
  State& state = *state_;
  llama_token_data_array array = state.fill(logits);
  Token token = state.choose(array);
  const bool holds = state.grammar && !state.thought.inside();
  if (holds && !state.allows(token)) {
    array = state.fill(logits);
    llama_sampler_apply(state.grammar.get(), &array);
    token = state.choose(array);
  }
  llama_sampler_accept(state.chain.get(), token);
  if (state.grammar && !state.thought.over()) state.thought.add(state.tokenizer->piece(token, true));
  if (holds) {
    try {
      llama_sampler_accept(state.grammar.get(), token);
    } catch (const std::exception& error) {
      fail("grammar: {}", error.what());
    }
  }
  return token;
}

int Sampler::likely() const { return state_->likely; }

Token Sampler::sample(std::span<const LikelyToken> tokens) {
  llama_token_data_array array = state_->fill(tokens);
  const Token token = state_->choose(array);
  llama_sampler_accept(state_->chain.get(), token);
  return token;
}

void Sampler::accept(std::span<const Token> tokens) {
  for (const Token token : tokens) llama_sampler_accept(state_->chain.get(), token);
}

void Sampler::restart_grammar() {
  if (!state_->grammar) return;
  llama_sampler_reset(state_->grammar.get());
  state_->thought.restart();
  begin_grammar(state_->grammar.get(), state_->prefix);
}

}  // namespace tidal
