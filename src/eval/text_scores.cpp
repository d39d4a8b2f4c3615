#include "eval/text_scores.h"

#include <algorithm>
#include <optional>

#include "core/error.h"
#include "eval/next_token.h"
#include "eval/teacher_forced.h"

namespace tidal {
namespace {

/// One plan's sums.
struct Sums {
  MeanError nll, kl, same, bytes;
  std::vector<MeanError> parts;

  TextScore score() const {
    TextScore score{nll.mean(), kl.mean(), kl.error(), same.mean(), bytes.mean(), {}};
    for (const MeanError& part : parts) score.kl_parts.push_back(part.mean());
    return score;
  }
};

}  // namespace

std::vector<TextScore> score_text(Engine& engine, const Sequence& prefix, std::span<const Token> tokens,
                                  std::span<const Plan> plans, const std::function<void()>& step,
                                  const TextReference& of) {
  if (tokens.size() < 2) fail("evaluation: {} tokens to score, at least 2 are needed", tokens.size());
  const auto steps = static_cast<int>(tokens.size()) - 1;
  const int parts = std::min(steps, kTextScoreParts);
  std::vector<Sums> sums(plans.size() + 1);
  for (Sums& own : sums) own.parts.resize(parts);
  // Full attention's own score takes a plan to be called for.
  const Plan full = Plan::full(engine.model().hp.layers);
  const std::span<const Plan> run_plans = plans.empty() ? std::span(&full, 1) : plans;
  NextToken reference;
  std::optional<Sequence> other;  // the reference's
  int prepared = -1;
  teacher_forced(engine, prefix, tokens.first(steps), run_plans, [&](const ForcedStep& at) {
    const Token next = tokens[at.step + 1];
    const int context = prefix.length() + at.step + 1;
    if (prepared != at.step) {
      if (of.engine && at.step == 0) other.emplace(of.prefix->fork());  // plans may take turns
      const Engine::Request request{
          .sequence = other ? &*other : nullptr, .tokens = tokens.subspan(at.step, 1), .decode = true, .plan = &full};
      reference.set(of.engine ? of.engine->step({&request, 1}) : at.full);
      prepared = at.step;
    }
    if (at.plan == 0) {
      Sums& own = sums[0];
      own.nll.add(of.engine ? negative_log_likelihood(at.full, next) : reference.negative_log_likelihood(next));
      own.kl.add(of.engine ? reference.kl_divergence(at.full) : 0);
      own.same.add(!of.engine || argmax(at.full) == reference.best() ? 1 : 0);
      own.bytes.add(static_cast<double>(engine.decode_bytes(context, full)));
    }
    if (!plans.empty()) {
      Sums& own = sums[at.plan + 1];
      const double kl = reference.kl_divergence(at.logits);
      own.nll.add(negative_log_likelihood(at.logits, next));
      own.kl.add(kl);
      own.parts[static_cast<size_t>(int64_t{at.step} * parts / steps)].add(kl);
      own.same.add(argmax(at.logits) == reference.best() ? 1 : 0);
      own.bytes.add(static_cast<double>(engine.decode_bytes(context, plans[at.plan])));
    }
    if (step) step();
    return true;
  });
  std::vector<TextScore> scores;
  for (const Sums& own : sums) scores.push_back(own.score());
  return scores;
}

}  // namespace tidal
