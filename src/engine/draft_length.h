// How many tokens exact mode drafts before it verifies them, and from where.
#pragma once

#include <array>
#include <vector>

namespace tidal {

/// Where drafts come from.
enum class DraftSource {
  Sparse,      ///< decoded by sparse attention
  ShortMatch,  ///< copied from behind an earlier occurrence of the last few tokens
  LongMatch,   ///< the same, of many tokens
};
inline constexpr int kDraftSources = 3;

/// Chooses the drafts of every round by what rounds have cost and how many drafts were accepted.
///
/// With acceptance rate a per draft, a round of T drafts yields E(T) = 1 + a + ... + a^T tokens and takes
/// T * draft + verify(T + 1) seconds; the source and T with the most tokens per second are taken. Copied drafts cost
/// nothing. verify(n), the dense pass over n rows, is interpolated between the n that were measured. T = 0 is full
/// attention, one token a step.
class DraftLength {
 public:
  struct Round {
    DraftSource source = DraftSource::Sparse;
    int drafts = 0;
  };

  /// `most` >= 1: the largest T.
  explicit DraftLength(int most);

  /// Drafts of the next round: at most `sparse` decoded ones, or at most `copied` ones of source `match`.
  Round next(int sparse, int copied, DraftSource match);
  /// What the round took: seconds of all drafts together, and of verifying; `accepted` <= round.drafts.
  void record(const Round& round, int accepted, double draft_seconds, double verify_seconds);

  /// Estimates so far.
  double acceptance(DraftSource source) const;
  double draft_seconds() const { return draft_; }
  double verify_seconds(int rows) const;
  /// Seconds per token by the model above.
  double seconds_per_token(const Round& round) const;

 private:
  struct Trials {
    double tried = 0, accepted = 0;  // older ones count less
  };
  Round best(int sparse, int copied, DraftSource match) const;

  int most_;
  double draft_ = 0;            // seconds of one sparse draft; 0: not measured
  std::vector<double> verify_;  // [most + 2] seconds by rows; 0: not measured
  std::array<Trials, kDraftSources> trials_;
  int rounds_without_ = 0;  // since the last round with sparse drafts
  int patience_;            // rounds without drafts before they are tried again
};

}  // namespace tidal
