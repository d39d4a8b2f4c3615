// How a text was cut into chunks, so that what is computed again becomes what it was.
#pragma once

#include <span>
#include <vector>

#include "backend/hyperparameters.h"

namespace tidal {

/// Which chunks have computed the clean tokens of a sequence. What a row gets may hang on the chunk that it is in, in
/// the last bits, unless that was as short as a decode step's.
class Stretches {
 public:
  /// Records that `tokens`, from `position` on, have been computed by one dense chunk, unless that was again().
  void record(int position, std::span<const Token> tokens, int decode_rows);
  /// Of `tokens`, which are all, those from `length` on are forgotten. What was computed together with the ones before
  /// is kept for again().
  void truncate(int length, std::span<const Token> tokens);
  /// Where a chunk begins that can compute `position` as it was computed; `position` itself where any does.
  int begin(int position) const;

  struct Again {
    int rows = 0;                 ///< of the text
    std::span<const Token> rest;  ///< that were behind these rows in the same chunk, and are no longer in the text
  };
  /// The chunk from `position`, a begin(), on that computes them as they were computed: at most `most` rows of the
  /// text. One of up to `decode_rows` where they were decoded.
  Again again(int position, int most, int decode_rows) const;
  /// The end of what again() computes where a text has `length` tokens.
  int end(int length) const;

 private:
  /// Tokens [begin, end) that one chunk has computed, or any number of short ones.
  struct Stretch {
    int begin = 0, end = 0;
    bool decoded = false;
    std::vector<Token> rest;
  };

  const Stretch* find(int position) const;

  std::vector<Stretch> stretches_;  // by position; between them nothing is known
};

}  // namespace tidal
