#include "engine/exact.h"

#include <algorithm>

#include "core/error.h"
#include "core/timer.h"

namespace tidal {
namespace {

// Tokens that must have occurred before for what followed them to be a draft, and for a match to count as a long one.
constexpr int kShortMatch = 2;
constexpr int kLongMatch = 5;

/// Of a step's rows, one.
Prospects row_of(const Prospects& rows, int index, size_t vocab, size_t likely) {
  if (likely > 0) return {.logits = {}, .likely = rows.likely.subspan(index * likely, likely)};
  return {.logits = rows.logits.subspan(index * vocab, vocab), .likely = {}};
}

}  // namespace

Prospects step(Engine& engine, const Engine::Request& request, const TokenChooser& chooser) {
  if (const int likely = chooser.likely(); likely > 0)
    return {.logits = {}, .likely = engine.step({&request, 1}, likely)};
  return {.logits = engine.step({&request, 1}), .likely = {}};
}

ExactDecoder::ExactDecoder(Engine& engine, const ExactOptions& options)
    : engine_(engine),
      draft_plan_(options.plan.value_or(engine.plan())),
      full_plan_(Plan::full(engine.model().hp.layers)),
      options_(options),
      length_(options.drafts) {
  if (options.drafts < 1) fail("exact: {} drafts given, at least 1 is needed", options.drafts);
  draft_plan_.correct = 0;  // verifying corrects
}

DraftLength::Round ExactDecoder::plan_round(const Sequence& sequence, int limit, const Repetition& repetition) {
  const int sparse = draft_plan_.sparse_at(sequence.length() + 1) ? limit : 0;
  const int copied = repetition.matched > 0 ? limit : 0;
  const DraftSource match = repetition.matched >= kLongMatch ? DraftSource::LongMatch : DraftSource::ShortMatch;
  if (options_.adapt) return length_.next(sparse, copied, match);
  return copied > 0 ? DraftLength::Round{match, copied} : DraftLength::Round{DraftSource::Sparse, sparse};
}

void ExactDecoder::draft(Sequence& sequence, Token token, int drafts, TokenChooser& chooser) {
  chooser.begin_draft();
  for (int i = 0; i < drafts; ++i) {
    const Engine::Request request{.sequence = &sequence, .tokens = {&token, 1}, .decode = true, .plan = &draft_plan_};
    const Prospects next = step(engine_, request, chooser);
    statistics_.bytes += engine_.decode_bytes(sequence.length(), draft_plan_);
    token = chooser.draft(next);
    drafts_.push_back(token);
    if (chooser.ends(token)) return;
  }
}

void ExactDecoder::verify(Sequence& sequence, Token token, TokenChooser& chooser) {
  // The rows: `token` and every draft. Sparse drafts have left all but the last one in the cache, polluted; copied ones
  // have left nothing there.
  const int first = sequence.clean();
  inputs_.assign(1, token);
  inputs_.insert(inputs_.end(), drafts_.begin(), drafts_.end());
  const int rows = static_cast<int>(inputs_.size());
  const size_t vocab = engine_.model().hp.vocab, likely = chooser.likely();
  const int most_rows = std::min(engine_.pool().backend().decode_rows(), engine_.chunk());
  for (int done = 0; done < rows;) {
    const int count = engine_.text_rows(first + done, std::min(most_rows, rows - done));
    const int cached = std::min(count, sequence.length() - sequence.clean());
    const Engine::Request request{
        .sequence = &sequence,
        .tokens = std::span<const Token>(inputs_).subspan(static_cast<size_t>(done) + cached, count - cached),
        .all_logits = true,
        .correct = cached};
    const Prospects next = step(engine_, request, chooser);
    statistics_.bytes += engine_.decode_bytes(first + done + count, full_plan_);
    for (int i = 0; i < count; ++i) {
      const Token chosen = chooser.choose(row_of(next, i, vocab, likely));
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
  const int limit = std::min({most - 1, engine_.options().context - before - 1, options_.drafts});
  const Repetition repetition =
      options_.copy && limit > 0 ? find_repetition(sequence.tokens(), token, kShortMatch) : Repetition{};
  DraftLength::Round round = plan_round(sequence, limit, repetition);
  drafts_.clear();
  chosen_.clear();
  try {
    const Timer timer;
    if (round.source == DraftSource::Sparse) {
      draft(sequence, token, round.drafts, chooser);
    } else {
      copy_repetition(sequence.tokens(), token, repetition, round.drafts, drafts_);
    }
    const double drafted = timer.seconds();
    verify(sequence, token, chooser);
    const double verified = timer.seconds() - drafted;
    round.drafts = static_cast<int>(drafts_.size());
    const int accepted = static_cast<int>(chosen_.size()) - 1;
    length_.record(round, accepted, drafted, verified);
    ++statistics_.rounds;
    DraftCounts& counts = round.source == DraftSource::Sparse ? statistics_.sparse : statistics_.copied;
    counts.drafted += round.drafts;
    counts.tried += std::min(accepted + 1, round.drafts);
    counts.accepted += accepted;
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
