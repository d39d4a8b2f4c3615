// Exact mode without a sampler: the most likely token, always.
#pragma once

#include <algorithm>

#include "engine/exact.h"

namespace tidal {

class GreedyChooser final : public TokenChooser {
 public:
  Token choose(std::span<const float> logits) override {
    return static_cast<Token>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  }
  void begin_draft() override {}
  Token draft(std::span<const float> logits) override { return choose(logits); }
  bool ends(Token) const override { return false; }
};

}  // namespace tidal
