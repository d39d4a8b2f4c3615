#include "eval/teacher_forced.h"

#include <algorithm>

#include "core/error.h"

namespace tidal {
namespace {

/// Blocks that a fork comes to own when it grows by `steps` tokens: the last one of the prefix is copied.
int own_blocks(int steps) { return blocks_for(steps) + 1; }

/// Plans that decode together, full attention first.
class Turn {
 public:
  Turn(Engine& engine, const Sequence& prefix, std::span<const Plan> plans, int first)
      : engine_(engine), full_(Plan::full(engine.model().hp.layers)), plans_(plans), first_(first) {
    for (size_t i = 0; i < plans.size() + 1; ++i) forks_.push_back(prefix.fork());
  }

  bool run(std::span<const Token> tokens, const std::function<bool(const ForcedStep&)>& use) {
    for (size_t step = 0; step < tokens.size(); ++step) {
      if (!run_step(tokens.subspan(step, 1), static_cast<int>(step), use)) return false;
    }
    return true;
  }

 private:
  bool run_step(std::span<const Token> token, int step, const std::function<bool(const ForcedStep&)>& use) {
    const size_t vocab = engine_.model().hp.vocab, most = engine_.options().sequences;
    for (size_t begin = 0; begin < forks_.size(); begin += most) {
      const size_t end = std::min(forks_.size(), begin + most);
      requests_.clear();
      for (size_t i = begin; i < end; ++i) {
        requests_.push_back(
            {.sequence = &forks_[i], .tokens = token, .decode = true, .plan = i == 0 ? &full_ : &plans_[i - 1]});
      }
      const std::span<const float> logits = engine_.step(requests_);
      // Kept: the next batch of this step overwrites them.
      if (begin == 0) full_logits_.assign(logits.begin(), logits.begin() + static_cast<ptrdiff_t>(vocab));
      for (size_t i = std::max<size_t>(begin, 1); i < end; ++i) {
        const int plan = first_ + static_cast<int>(i) - 1;
        if (!use({plan, step, logits.subspan((i - begin) * vocab, vocab), full_logits_})) return false;
      }
    }
    return true;
  }

  Engine& engine_;
  const Plan full_;
  std::span<const Plan> plans_;
  int first_;
  std::vector<Sequence> forks_;  // full attention's, then a plan each
  std::vector<Engine::Request> requests_;
  std::vector<float> full_logits_;
};

}  // namespace

int64_t teacher_forced_tokens(int plans, int steps) {
  return int64_t{kBlockTokens} * own_blocks(steps) * (int64_t{plans} + 1);
}

bool teacher_forced(Engine& engine, const Sequence& prefix, std::span<const Token> tokens, std::span<const Plan> plans,
                    const std::function<bool(const ForcedStep&)>& use) {
  for (const Plan& plan : plans) plan.check(engine.model().hp);
  const auto steps = static_cast<int>(tokens.size());
  if (prefix.length() + int64_t{steps} > engine.options().context) {
    fail("evaluation: {} tokens behind {} do not fit in a context of {}", steps, prefix.length(),
         engine.options().context);
  }
  const size_t room = engine.pool().free_blocks() / own_blocks(steps);
  if (room < 2 && !plans.empty()) {
    fail("evaluation: full attention and one plan need {} free blocks of the KV cache, it has {}",
         2 * own_blocks(steps), engine.pool().free_blocks());
  }
  for (size_t first = 0; first < plans.size();) {
    const size_t count = std::min(plans.size() - first, room - 1);
    Turn turn(engine, prefix, plans.subspan(first, count), static_cast<int>(first));
    if (!turn.run(tokens, use)) return false;
    first += count;
  }
  return true;
}

}  // namespace tidal
