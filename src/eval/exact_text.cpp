#include "eval/exact_text.h"

#include "core/timer.h"
#include "engine/greedy_chooser.h"

namespace tidal {
namespace {

constexpr int kBestTwo = 2;

}  // namespace

FullText full_text(Engine& engine, const Sequence& prompt, Token token, int count,
                   const std::function<void(int tokens)>& step) {
  Sequence sequence = prompt.fork();
  FullText text;
  while (static_cast<int>(text.tokens.size()) < count) {
    const Timer timer;
    const Engine::Request request{.sequence = &sequence, .tokens = {&token, 1}};  // a dense chunk of one
    const std::span<const LikelyToken> best = engine.step({&request, 1}, kBestTwo);
    token = best[0].token;
    text.seconds += timer.seconds();
    text.tokens.push_back(token);
    text.gaps.push_back(best[0].logit - best[1].logit);
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
