// Texts by full attention and by exact mode, which must be the same.
#pragma once

#include "engine/exact.h"
#include "engine/greedy_chooser.h"
#include "unit/engine_setup.h"

namespace tidal::test {

/// `count` tokens behind `token`, which follows `sequence`, by full attention; fewer where one ends the text.
inline std::vector<Token> full_text(Engine& engine, Sequence sequence, Token token, int count, TokenChooser& chooser) {
  std::vector<Token> text;
  while (static_cast<int>(text.size()) < count) {
    const Engine::Request request{.sequence = &sequence, .tokens = {&token, 1}};
    token = chooser.choose(step(engine, request, chooser));
    text.push_back(token);
    if (chooser.ends(token)) break;
  }
  return text;
}

/// The same by exact mode.
inline std::vector<Token> exact_text(ExactDecoder& decoder, Sequence sequence, Token token, int count,
                                     TokenChooser& chooser) {
  const int prefix = sequence.length();
  std::vector<Token> text;
  while (static_cast<int>(text.size()) < count) {
    const auto tokens = decoder.advance(sequence, token, count - static_cast<int>(text.size()), chooser);
    EXPECT_GE(tokens.size(), 1u);
    EXPECT_EQ(sequence.clean(), sequence.length());
    text.insert(text.end(), tokens.begin(), tokens.end());
    token = text.back();
    if (chooser.ends(token)) break;
  }
  // All but the last are in the cache.
  const auto cached = sequence.tokens().subspan(static_cast<size_t>(prefix) + 1);
  EXPECT_EQ(std::vector<Token>(cached.begin(), cached.end()), std::vector<Token>(text.begin(), text.end() - 1));
  return text;
}

}  // namespace tidal::test
