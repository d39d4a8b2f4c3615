// Exact mode: drafts are cheap, full attention verifies them, and the text is full attention's.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "engine/draft_length.h"
#include "engine/engine.h"
#include "engine/repetition.h"

namespace tidal {

inline constexpr int kDefaultDrafts = 7;  ///< one pass of 8 rows verifies them

/// What a token is chosen by: all logits [vocab], or the most likely tokens in their order; the other is empty.
struct Prospects {
  std::span<const float> logits;
  std::span<const LikelyToken> likely;
};

/// How tokens are chosen, by whoever samples. The text is what choose() returned, in order.
class TokenChooser {
 public:
  virtual ~TokenChooser() = default;
  /// How many of the most likely tokens it chooses by, the same always; 0: by all logits.
  virtual int likely() const = 0;
  /// The next token of the text, by full attention.
  virtual Token choose(const Prospects& next) = 0;
  /// From here on draft() foretells what choose() is going to return, by sparse attention.
  virtual void begin_draft() = 0;
  virtual Token draft(const Prospects& next) = 0;
  /// True for a token that ends the text: nothing is chosen after it.
  virtual bool ends(Token token) const = 0;
};

/// A step of one request, for what the chooser chooses by: of every row that asked, one behind the other.
Prospects step(Engine& engine, const Engine::Request& request, const TokenChooser& chooser);

/// Drafts of one source, or of several.
struct DraftCounts {
  int64_t drafted = 0;
  int64_t tried = 0;  ///< held against full attention: up to the first rejected one of a round
  int64_t accepted = 0;

  double acceptance() const { return tried > 0 ? static_cast<double>(accepted) / static_cast<double>(tried) : 0; }
};

/// What exact decoding did.
struct ExactStatistics {
  int64_t rounds = 0;
  DraftCounts sparse, copied;
  int64_t bytes = 0;  ///< read by all passes: weights, and K/V once a pass
  double draft_seconds = 0, verify_seconds = 0;

  DraftCounts all() const {
    return {sparse.drafted + copied.drafted, sparse.tried + copied.tried, sparse.accepted + copied.accepted};
  }
};

struct ExactOptions {
  int drafts = kDefaultDrafts;    ///< most drafts of a round, >= 1
  bool adapt = true;              ///< as many as pay; else every round has as many as fit
  bool copy = true;               ///< where the text repeats itself, what followed the last time is a draft, too
  std::optional<Plan> plan = {};  ///< that drafts; nullopt: the one that the engine has at construction
};

/// Decodes by rounds: up to T tokens are drafted by the engine's plan, then one dense chunk computes their K/V again
/// (the cache correction of TidalDecode) and gives full attention's logits for each of them. Drafts stand as long as
/// they are what the chooser takes by those logits. Chunks have at most Backend::decode_rows() rows, so the logits are
/// those of decoding by full attention, bit for bit; with a chooser that draws the same random numbers for a draft and
/// for the token itself, so is the text for every seed. The sequence is clean after every round.
///
/// Where the last tokens occurred before, what followed them then may be the draft instead (prompt lookup decoding): it
/// costs nothing, and long documents are quoted often.
class ExactDecoder {
 public:
  /// The engine must outlive the decoder. Throws Error for fewer drafts than one.
  ExactDecoder(Engine& engine, const ExactOptions& options);

  /// Appends `token`, which the chooser chose last, to a clean sequence, and decodes on. Returns the tokens chosen, 1
  /// to `most`, valid until the next call; all but the last are in the cache. `most` >= 1. Throws Error as
  /// Engine::step(); then the sequence holds tokens of the text only, all clean, and more may have been chosen.
  std::span<const Token> advance(Sequence& sequence, Token token, int most, TokenChooser& chooser);

  const ExactStatistics& statistics() const { return statistics_; }
  const DraftLength& length() const { return length_; }

 private:
  DraftLength::Round plan_round(const Sequence& sequence, int limit, const Repetition& repetition);
  void draft(Sequence& sequence, Token token, int drafts, TokenChooser& chooser);
  void verify(Sequence& sequence, Token token, TokenChooser& chooser);

  Engine& engine_;
  Plan draft_plan_, full_plan_;
  ExactOptions options_;
  DraftLength length_;
  ExactStatistics statistics_;
  std::vector<Token> drafts_, inputs_, chosen_;
};

}  // namespace tidal
