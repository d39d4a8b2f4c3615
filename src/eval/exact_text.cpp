#include "eval/exact_text.h"

#include <algorithm>
#include <limits>

#include "core/timer.h"
#include "engine/greedy_chooser.h"

namespace tidal {
namespace {

/// Between the best and the second best; 0 where two are equal.
float gap(std::span<const float> logits) {
  float best = -std::numeric_limits<float>::infinity(), second = best;
  for (const float logit : logits) {
    second = std::max(second, std::min(best, logit));
    best = std::max(best, logit);
  }
  return best - second;
}

}  // namespace

FullText full_text(Engine& engine, const Sequence& prompt, Token token, int count,
                   const std::function<void(int tokens)>& step) {
  Sequence sequence = prompt.fork();
  GreedyChooser chooser;
  FullText text;
  while (static_cast<int>(text.tokens.size()) < count) {
    const Timer timer;
    const Engine::Request request{.sequence = &sequence, .tokens = {&token, 1}};  // a dense chunk of one
    const std::span<const float> logits = engine.step({&request, 1});
    token = chooser.choose(logits);
    text.seconds += timer.seconds();
    text.tokens.push_back(token);
    text.gaps.push_back(gap(logits));
    step(1);
  }
  return text;
}

ExactText exact_text(Engine& engine, const Sequence& prompt, Token token, int count, const Plan& plan,
                     const ExactOptions& options, const std::function<void(int tokens)>& step) {
  Sequence sequence = prompt.fork();
  GreedyChooser chooser;
  engine.set_plan(plan);
  ExactDecoder decoder(engine, options);
  ExactText text;
  while (static_cast<int>(text.tokens.size()) < count) {
    const Timer timer;
    const auto more = decoder.advance(sequence, token, count - static_cast<int>(text.tokens.size()), chooser);
    text.seconds += timer.seconds();
    text.tokens.insert(text.tokens.end(), more.begin(), more.end());
    token = text.tokens.back();
    step(static_cast<int>(more.size()));
  }
  text.statistics = decoder.statistics();
  return text;
}

}  // namespace tidal
