#include "engine/exact.h"

#include <algorithm>

#include "core/error.h"
#include "core/timer.h"

namespace tidal {

ExactDecoder::ExactDecoder(Engine& engine, int drafts, bool adapt)
    : engine_(engine),
      draft_plan_(engine.plan()),
      full_plan_(Plan::full(engine.model().hp.layers)),
      most_drafts_(drafts),
      adapt_(adapt),
      length_(drafts) {
  if (drafts < 1) fail("exact: {} drafts given, at least 1 is needed", drafts);
  draft_plan_.correct = 0;  // verifying corrects
}

void ExactDecoder::draft(Sequence& sequence, Token token, int drafts, TokenChooser& chooser) {
  chooser.begin_draft();
  for (int i = 0; i < drafts; ++i) {
    const Engine::Request request{.sequence = &sequence, .tokens = {&token, 1}, .decode = true, .plan = &draft_plan_};
    const std::span<const float> logits = engine_.step({&request, 1});
    statistics_.bytes += engine_.decode_bytes(sequence.length(), draft_plan_);
    token = chooser.draft(logits);
    drafts_.push_back(token);
    if (chooser.ends(token)) return;
  }
}

void ExactDecoder::verify(Sequence& sequence, Token token, TokenChooser& chooser) {
  // What the last draft follows is in the cache already, polluted; the last draft itself is new, and so is `token`
  // when nothing was drafted.
  const int first = sequence.clean();
  const int rows = static_cast<int>(drafts_.size()) + 1;
  const Token last = drafts_.empty() ? token : drafts_.back();
  const size_t vocab = engine_.model().hp.vocab;
  const int most_rows = std::min(engine_.pool().backend().decode_rows(), engine_.options().chunk);
  for (int done = 0; done < rows;) {
    const int count = std::min(most_rows, rows - done);
    const bool ending = done + count == rows;
    Engine::Request request{
        .sequence = &sequence, .tokens = {}, .all_logits = true, .correct = ending ? count - 1 : count};
    if (ending) request.tokens = {&last, 1};
    const std::span<const float> logits = engine_.step({&request, 1});
    statistics_.bytes += engine_.decode_bytes(first + done + count, full_plan_);
    for (int i = 0; i < count; ++i) {
      const Token chosen = chooser.choose(logits.subspan(i * vocab, vocab));
      chosen_.push_back(chosen);
      const size_t index = static_cast<size_t>(done) + i;
      if (index == drafts_.size() || chosen != drafts_[index] || chooser.ends(chosen)) {
        sequence.truncate(first + static_cast<int>(index) + 1);
        return;
      }
    }
    done += count;
  }
}

std::span<const Token> ExactDecoder::advance(Sequence& sequence, Token token, int most, TokenChooser& chooser) {
  if (sequence.clean() != sequence.length()) {
    fail("exact: {} tokens of the sequence are polluted, expected none", sequence.length() - sequence.clean());
  }
  const int before = sequence.length();
  const int room = engine_.options().context - before - 1;
  const bool sparse = draft_plan_.sparse_at(before + 1);
  const int limit = std::min({most - 1, room, most_drafts_});
  const int count = !sparse ? 0 : adapt_ ? length_.next(limit) : limit;
  drafts_.clear();
  chosen_.clear();
  try {
    const Timer timer;
    if (count > 0) draft(sequence, token, count, chooser);
    const double drafted = timer.seconds();
    verify(sequence, token, chooser);
    const double verified = timer.seconds() - drafted;
    const int drafts = static_cast<int>(drafts_.size()), accepted = static_cast<int>(chosen_.size()) - 1;
    if (sparse) length_.record(drafts, accepted, drafted, verified);
    ++statistics_.rounds;
    statistics_.drafted += drafts;
    statistics_.tried += std::min(accepted + 1, drafts);
    statistics_.accepted += accepted;
    statistics_.draft_seconds += drafted;
    statistics_.verify_seconds += verified;
  } catch (...) {
    // Drafts are no text.
    sequence.truncate(std::min(sequence.length(), std::max(before, sequence.clean())));
    throw;
  }
  return chosen_;
}

}  // namespace tidal
