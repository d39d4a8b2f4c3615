#include "eval/calibration_losses.h"

#include <algorithm>

#include "core/timer.h"
#include "eval/next_token.h"
#include "eval/teacher_forced.h"

namespace tidal {
namespace {

/// Tokens of a text whose K/V it has from its parent. Where it writes, blocks that are shared become copies; a hybrid
/// that goes on before its parent's end may have to run all again, from the last state that the parent has kept.
int kept_tokens(std::span<const CalibrationText> texts, const CalibrationText& text, const Hyperparameters& hp) {
  if (text.parent < 0 || hp.recurrent_layers() == 0) return text.shared;
  const bool whole = texts[static_cast<size_t>(text.parent)].prefix.size() == static_cast<size_t>(text.shared);
  return whole ? text.shared : 0;
}

EngineOptions engine_options(const Hyperparameters& hp, std::span<const CalibrationText> texts,
                             const CalibrationLosses::Options& wanted) {
  const int batch = wanted.batch;
  EngineOptions options;
  options.kv_type = wanted.kv_type;
  options.kv_place = wanted.kv_place;
  options.later_plans = wanted.plans;
  options.sequences = batch + 1;
  options.whole_windows = true;  // prefixes are cut back to what the next one shares
  // The prefixes of all texts stay, beside a fork for each candidate.
  options.states += static_cast<int>(texts.size()) / options.sequences + 1;
  options.context = 0;
  size_t steps = 0;
  for (const CalibrationText& text : texts) {
    options.context = std::max(options.context, static_cast<int>(text.prefix.size() + text.steps.size()));
    options.tokens += static_cast<int64_t>(text.prefix.size()) - kept_tokens(texts, text, hp) + 2 * kBlockTokens;
    steps = std::max(steps, text.steps.size());
  }
  options.tokens += teacher_forced_tokens(batch, static_cast<int>(steps));
  return options;
}

}  // namespace

CalibrationLosses::CalibrationLosses(Backend& backend, const Model& model, std::span<const CalibrationText> texts,
                                     const CandidatePolicies& policies, Options options)
    : texts_(texts),
      policies_(policies),
      options_(std::move(options)),
      engine_(backend, model, Plan::full(model.hp.layers), engine_options(model.hp, texts, options_)),
      prefixes_(texts.size()) {}

const Sequence& CalibrationLosses::prefilled(int text) {
  std::optional<Sequence>& prefix = prefixes_.at(static_cast<size_t>(text));
  if (prefix) return *prefix;
  const CalibrationText& source = texts_[static_cast<size_t>(text)];
  Sequence sequence = engine_.create();
  if (source.parent >= 0) {
    sequence = prefilled(source.parent).fork();
    sequence.truncate(source.shared);
  }
  const auto tokens = std::span(source.prefix).subspan(static_cast<size_t>(sequence.length()));
  int before = 0;
  bool halted = false;
  engine_.prefill(sequence, tokens, [&](int done) {
    halted = options_.prefilled && !options_.prefilled(done - before);
    before = done;
    return !halted;
  });
  if (halted) throw Halted();
  return prefix.emplace(std::move(sequence));
}

std::vector<TextLoss> CalibrationLosses::measure(std::span<const Candidate> plans, int text) {
  const Sequence& prefix = prefilled(text);
  const std::vector<Token>& tokens = texts_[static_cast<size_t>(text)].steps;
  std::vector<TextLoss> losses(plans.size());
  const auto most = static_cast<size_t>(options_.batch);
  NextToken full;
  for (size_t first = 0; first < plans.size(); first += most) {
    std::vector<Plan> batch;
    for (const Candidate& plan : plans.subspan(first, std::min(most, plans.size() - first))) {
      batch.push_back(plan_with(plan, engine_.model().hp, policies_));
    }
    const bool whole = teacher_forced(engine_, prefix, tokens, batch, [&](const ForcedStep& step) {
      if (step.plan == 0) full.set(step.full);
      losses[first + static_cast<size_t>(step.plan)].add(full.kl_divergence(step.logits));
      const bool last = step.plan + 1 == static_cast<int>(batch.size());
      return !last || !options_.decoded || options_.decoded(static_cast<int64_t>(batch.size()));
    });
    if (!whole) throw Halted();
  }
  return losses;
}

double CalibrationLosses::step_seconds(const Plan& plan) {
  Sequence sequence = prefilled(0).fork();
  engine_.set_plan(plan);
  std::vector<double> seconds;
  for (const Token token : texts_[0].steps) {
    const Timer timer;
    engine_.decode(sequence, token);
    seconds.push_back(timer.seconds());
    if (options_.decoded && !options_.decoded(0)) throw Halted();
  }
  const auto middle = seconds.begin() + static_cast<ptrdiff_t>(seconds.size() / 2);
  std::nth_element(seconds.begin(), middle, seconds.end());
  return *middle;
}

}  // namespace tidal
