// Exact mode without a sampler: the most likely token, always.
#pragma once

#include "engine/exact.h"

namespace tidal {

class GreedyChooser final : public TokenChooser {
 public:
  int likely() const override { return 1; }
  Token choose(const Prospects& next) override { return next.likely.front().token; }
  void begin_draft() override {}
  Token draft(const Prospects& next) override { return choose(next); }
  bool ends(Token) const override { return false; }
};

}  // namespace tidal
