// Exact mode: tidal decoding drafts, full attention verifies, and the text is full attention's.
#pragma once

#include <span>
#include <vector>

#include "engine/draft_length.h"
#include "engine/engine.h"

namespace tidal {

inline constexpr int kDefaultDrafts = 7;  ///< one pass of 8 rows verifies them

/// How tokens are chosen, by whoever samples. The text is what choose() returned, in order.
class TokenChooser {
 public:
  virtual ~TokenChooser() = default;
  /// The next token of the text, by full attention's logits [vocab].
  virtual Token choose(std::span<const float> logits) = 0;
  /// From here on draft() foretells what choose() is going to return, by logits of sparse attention.
  virtual void begin_draft() = 0;
  virtual Token draft(std::span<const float> logits) = 0;
  /// True for a token that ends the text: nothing is chosen after it.
  virtual bool ends(Token token) const = 0;
};

/// What exact decoding did.
struct ExactStatistics {
  int64_t rounds = 0, drafted = 0;
  int64_t tried = 0;  ///< drafts that were held against full attention: up to the first rejected one of a round
  int64_t accepted = 0;
  int64_t bytes = 0;  ///< read by all passes: weights, and K/V once a pass
  double draft_seconds = 0, verify_seconds = 0;

  double acceptance() const { return tried > 0 ? static_cast<double>(accepted) / static_cast<double>(tried) : 0; }
};

/// Decodes by rounds: up to T tokens are drafted by the engine's plan, then one dense chunk computes their K/V again
/// (the cache correction of TidalDecode) and gives full attention's logits for each of them. Drafts stand as long as
/// they are what the chooser takes by those logits. Chunks have at most Backend::decode_rows() rows, so the logits are
/// those of decoding by full attention, bit for bit; with a chooser that draws the same random numbers for a draft and
/// for the token itself, so is the text for every seed. The sequence is clean after every round.
class ExactDecoder {
 public:
  /// Drafts by the plan that the engine has now. `drafts` >= 1: most of a round; every round has as many, where they
  /// fit, unless it may `adapt` to what pays. The engine must outlive the decoder.
  ExactDecoder(Engine& engine, int drafts, bool adapt = true);

  /// Appends `token`, which the chooser chose last, to a clean sequence, and decodes on. Returns the tokens chosen, 1
  /// to `most`, valid until the next call; all but the last are in the cache. `most` >= 1. Throws Error as
  /// Engine::step(); then the sequence holds tokens of the text only, all clean, and more may have been chosen.
  std::span<const Token> advance(Sequence& sequence, Token token, int most, TokenChooser& chooser);

  const ExactStatistics& statistics() const { return statistics_; }
  const DraftLength& length() const { return length_; }

 private:
  void draft(Sequence& sequence, Token token, int drafts, TokenChooser& chooser);
  void verify(Sequence& sequence, Token token, TokenChooser& chooser);

  Engine& engine_;
  Plan draft_plan_, full_plan_;
  int most_drafts_;
  bool adapt_;
  DraftLength length_;
  ExactStatistics statistics_;
  std::vector<Token> drafts_, chosen_;
};

}  // namespace tidal
