// Exact mode with a sampler.
#pragma once

#include <optional>

#include "engine/exact.h"
#include "text/sampler.h"
#include "text/tokenizer.h"

namespace tidal {

/// Drafts with a copy of the sampler, so that a draft is drawn by the random numbers that its token will be drawn by.
class SamplerChooser final : public TokenChooser {
 public:
  /// Both must outlive the chooser.
  SamplerChooser(Sampler& sampler, const Tokenizer& tokenizer) : sampler_(sampler), tokenizer_(tokenizer) {}

  int likely() const override { return sampler_.likely(); }
  Token choose(const Prospects& next) override { return sample(sampler_, next); }
  void begin_draft() override { copy_ = sampler_.clone(); }
  Token draft(const Prospects& next) override { return sample(*copy_, next); }
  bool ends(Token token) const override { return tokenizer_.is_end(token); }

 private:
  static Token sample(Sampler& sampler, const Prospects& next) {
    return next.likely.empty() ? sampler.sample(next.logits) : sampler.sample(next.likely);
  }

  Sampler& sampler_;
  const Tokenizer& tokenizer_;
  std::optional<Sampler> copy_;
};

}  // namespace tidal
