// Two engines over the same model, one of which keeps its K and V otherwise: whatever sequences do, both give the same.
#pragma once

#include <deque>

#include "unit/engine_setup.h"

namespace tidal::test {

/// The same sequence on both engines.
struct SequencePair {
  Sequence whole, other;
};

/// What came of anything_in_any_order().
struct PairCounts {
  int batches = 0, truncated = 0, corrected = 0, forks = 0;
};

/// Up to `sequences` texts are begun, forked, truncated, corrected, dropped and go on in batches of chunks of up to
/// `chunk` tokens and of tokens that are decoded, `rounds` times in a random order; all logits must be the same.
inline PairCounts anything_in_any_order(SmallEngine& whole, SmallEngine& other, int sequences, int chunk, int rounds,
                                        uint64_t seed) {
  Random random(seed);
  PairCounts counts;
  const std::vector<Token> text = random_tokens(2048, 3);
  const auto some = [&](int first, int count) {
    return std::span(text).subspan(static_cast<size_t>(first), static_cast<size_t>(count));
  };
  std::deque<SequencePair> pairs;
  // One batch of all: a chunk of one of them, which may correct it, a token of the others.
  const auto batch = [&](size_t at, int round) {
    std::vector<Engine::Request> requests;
    for (size_t i = 0; i < pairs.size(); ++i) {
      Sequence& sequence = pairs[i].other;
      Engine::Request request{.sequence = &sequence, .tokens = some(random.integer(0, 1800), 1)};
      request.decode = random.integer(0, 1) == 1 && sequence.length() > 0;
      const int polluted = sequence.length() - sequence.clean();
      if (i == at && !request.decode) {
        if (polluted < chunk / 2) request.correct = polluted;
        const int most = std::min(chunk - request.correct, 2000 - sequence.length());
        if (most < 1) continue;
        request.tokens = some(random.integer(0, 1800), random.integer(1, most));
      }
      if (sequence.length() + static_cast<int>(request.tokens.size()) > 2000) continue;
      requests.push_back(request);
    }
    if (requests.empty()) return;
    const std::vector<float> got = copy(other.engine.step(requests));
    for (Engine::Request& request : requests) {
      for (SequencePair& one : pairs) {
        if (request.sequence == &one.other) request.sequence = &one.whole;
      }
    }
    EXPECT_EQ(got, copy(whole.engine.step(requests))) << round;
    ++counts.batches;
  };
  for (int round = 0; round < rounds && !testing::Test::HasFailure(); ++round) {
    const int what = random.integer(0, 9);
    const auto at = pairs.empty() ? 0 : static_cast<size_t>(random.integer(0, static_cast<int>(pairs.size()) - 1));
    const bool room = static_cast<int>(pairs.size()) < sequences;
    if (pairs.empty() || (what == 0 && room)) {
      pairs.push_back({whole.engine.create(), other.engine.create()});
      continue;
    }
    SequencePair& pair = pairs[at];
    const int length = pair.other.length();
    EXPECT_EQ(pair.whole.clean(), pair.other.clean());
    if (what <= 1 && room) {
      pairs.push_back({pair.whole.fork(), pair.other.fork()});
      ++counts.forks;
    } else if (what == 2) {
      // Among polluted tokens only as far as nothing has to be computed again: others would be corrected.
      const int to = random.integer(std::max(0, length - 300), length);
      if (to > pair.other.clean() && !pair.other.goes_on_at(to)) continue;
      pair.whole.truncate(to);
      pair.other.truncate(to);
      ++counts.truncated;
    } else if (what == 3) {
      counts.corrected += pair.other.clean() < length;
      whole.engine.correct(pair.whole);
      other.engine.correct(pair.other);
    } else if (what == 4 && random.integer(0, 3) == 0) {
      pairs.erase(pairs.begin() + static_cast<ptrdiff_t>(at));
    } else {
      batch(at, round);
    }
  }
  return counts;
}

}  // namespace tidal::test
