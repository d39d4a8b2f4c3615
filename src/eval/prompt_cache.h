// Prompts that begin alike are prefilled once as far as they do.
#pragma once

#include <functional>
#include <span>

#include "engine/engine.h"

namespace tidal {

/// Prefills one prompt after another and keeps the last, so that what the next one begins with need not be computed
/// again. What a prompt gets is bit-identical to prefilling it alone: only whole chunks are taken over, as a prompt's
/// chunks begin at multiples of their size. Prompts with a long common beginning should follow each other, those that
/// part late first.
class PromptCache {
 public:
  /// The engine must outlive it, and have no plan that corrects.
  explicit PromptCache(Engine& engine) : engine_(engine), last_(engine.create()) {}

  /// Tokens of this prompt that prefill() would compute.
  int missing(std::span<const Token> prompt) const;
  /// The prompt, densely prefilled; valid until the next call. `progress(tokens)`: how many more are done, after every
  /// chunk; what it throws ends the prefill, of which the whole chunks are kept. Throws Error as Engine::prefill()
  /// does.
  const Sequence& prefill(std::span<const Token> prompt, const std::function<void(int tokens)>& progress = {});

 private:
  int shared(std::span<const Token> prompt) const;

  Engine& engine_;
  Sequence last_;
};

}  // namespace tidal
