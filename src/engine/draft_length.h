// How many tokens exact mode drafts before it verifies them.
#pragma once

#include <vector>

namespace tidal {

/// Chooses the number of drafts of every round from what rounds have cost and how many drafts were accepted.
///
/// With acceptance rate a per draft, a round of T drafts yields E(T) = 1 + a + ... + a^T tokens and takes
/// T * draft + verify(T + 1); the T with the most tokens per second is taken. verify(n), the dense pass over n rows, is
/// interpolated between the n that were measured. T = 0 is full attention, one token a step.
class DraftLength {
 public:
  /// `most` >= 1: the largest T.
  explicit DraftLength(int most);

  /// Drafts of the next round, 0 to `limit`.
  int next(int limit);
  /// What the round took: seconds of all drafts together, and of verifying; `accepted` <= drafts.
  void record(int drafts, int accepted, double draft_seconds, double verify_seconds);

  /// Estimates so far.
  double acceptance() const;
  double draft_seconds() const { return draft_; }
  double verify_seconds(int rows) const;
  /// Seconds per token by the model above.
  double seconds_per_token(int drafts) const;

 private:
  int best(int limit) const;

  int most_;
  double draft_ = 0;              // seconds of one draft; 0: not measured
  std::vector<double> verify_;    // [most + 2] seconds by rows; 0: not measured
  double tried_ = 0, taken_ = 0;  // drafts verified, and accepted, older ones counting less
  int rounds_without_ = 0;        // since the last round with drafts
  int patience_;                  // rounds without drafts before they are tried again
};

}  // namespace tidal
