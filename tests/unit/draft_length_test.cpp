// How many drafts a round of exact mode has: what its model says, and never at much cost.
#include "engine/draft_length.h"

#include <gtest/gtest.h>

#include <cmath>

#include "support/random.h"

namespace tidal {
namespace {

/// A machine with known costs, and drafts accepted with a known probability.
struct Simulation {
  double full, draft, row;  // seconds: a full step, a draft, every further row of a verifying pass
  double acceptance;
  int most;

  double verify(int rows) const { return full + row * (rows - 1); }
  double per_token(int drafts) const {
    double tokens = 0;
    for (int i = 0; i <= drafts; ++i) tokens += std::pow(acceptance, i);
    return (drafts * draft + verify(drafts + 1)) / tokens;
  }
  double best() const {
    double best = full;
    for (int drafts = 1; drafts <= most; ++drafts) best = std::min(best, per_token(drafts));
    return best;
  }
  /// Seconds per token over `tokens` tokens.
  double run(int tokens, uint64_t stream, DraftLength& length) const {
    test::Random random(stream);
    double seconds = 0;
    int made = 0;
    while (made < tokens) {
      const DraftLength::Round round = length.next(std::min(most, tokens - made - 1), 0, DraftSource::ShortMatch);
      const int drafts = round.drafts;
      int accepted = 0;
      while (accepted < drafts && random.uniform(0.5f) + 0.5f < acceptance) ++accepted;
      length.record(round, accepted, drafts * draft, verify(drafts + 1));
      seconds += drafts * draft + verify(drafts + 1);
      made += accepted + 1;
    }
    return seconds / made;
  }
};

TEST(DraftLength, NeverCostsMuchWhereDraftsDoNotPay) {
  for (const double draft : {0.5, 0.9, 1.0}) {
    for (const double row : {0.1, 0.5, 1.0}) {
      for (const double acceptance : {0.0, 0.2, 0.5}) {
        const Simulation machine{1.0, draft, row, acceptance, 7};
        for (uint64_t stream = 0; stream < 10; ++stream) {
          DraftLength length(7);
          EXPECT_LT(machine.run(128, stream, length), 1.1) << draft << " " << row << " " << acceptance;
        }
      }
    }
  }
}

TEST(DraftLength, ComesNearTheBestWhereTheyPay) {
  for (const double draft : {0.1, 0.3, 0.5}) {
    for (const double row : {0.02, 0.1, 0.3}) {
      for (const double acceptance : {0.8, 0.9, 0.97}) {
        const Simulation machine{1.0, draft, row, acceptance, 15};
        DraftLength length(15);
        machine.run(200, 1, length);  // learns
        double sum = 0;
        for (uint64_t stream = 2; stream < 6; ++stream) sum += machine.run(400, stream, length);
        EXPECT_LT(sum / 4, 1.15 * machine.best()) << draft << " " << row << " " << acceptance;
      }
    }
  }
}

/// Drafts of the next round when nothing can be copied.
int next(DraftLength& length, int limit) { return length.next(limit, 0, DraftSource::ShortMatch).drafts; }

TEST(DraftLength, FirstMeasuresAFullStep) {
  DraftLength length(7);
  EXPECT_EQ(next(length, 7), 0);
  length.record({}, 0, 0, 1.0);
  EXPECT_GT(next(length, 7), 0);
  EXPECT_EQ(next(length, 0), 0);
  EXPECT_EQ(next(length, 1), 1);
}

TEST(DraftLength, FollowsAChange) {
  // Cheap drafts that hold, then a text whose drafts never do.
  const Simulation good{1.0, 0.1, 0.02, 1.0, 7}, bad{1.0, 0.1, 0.5, 0.0, 7};
  DraftLength length(7);
  good.run(100, 1, length);
  EXPECT_GE(next(length, 7), 5);
  bad.run(60, 1, length);
  EXPECT_EQ(next(length, 7), 0);
}

TEST(DraftLength, CopiedDraftsCostNothing) {
  DraftLength length(7);
  length.record({}, 0, 0, 1.0);
  // Sparse drafts as expensive as a full step never pay; copied ones that hold do.
  length.record({DraftSource::Sparse, 1}, 1, 1.0, 1.1);
  const DraftLength::Round round = length.next(7, 5, DraftSource::LongMatch);
  EXPECT_EQ(round.source, DraftSource::LongMatch);
  EXPECT_GT(round.drafts, 0);
  // Until they turn out to be wrong; matches of the other kind are judged by themselves.
  for (int i = 0; i < 20; ++i) length.record({DraftSource::LongMatch, 5}, 0, 0, 1.5);
  EXPECT_EQ(length.next(0, 5, DraftSource::LongMatch).drafts, 0);
  EXPECT_LT(length.acceptance(DraftSource::LongMatch), 0.2);
  EXPECT_GT(length.acceptance(DraftSource::ShortMatch), 0.3);
}

TEST(DraftLength, PassesBetweenMeasuredOnesAreInterpolated) {
  DraftLength length(7);
  EXPECT_EQ(length.verify_seconds(3), 0);
  length.record({}, 0, 0, 1.0);
  length.record({DraftSource::Sparse, 4}, 4, 4.0, 3.0);
  EXPECT_DOUBLE_EQ(length.verify_seconds(1), 1.0);
  EXPECT_DOUBLE_EQ(length.verify_seconds(3), 2.0);
  EXPECT_DOUBLE_EQ(length.verify_seconds(5), 3.0);
  EXPECT_DOUBLE_EQ(length.verify_seconds(7), 4.0);
  EXPECT_DOUBLE_EQ(length.draft_seconds(), 1.0);
}

}  // namespace
}  // namespace tidal
