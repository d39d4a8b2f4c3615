// One HTML page that shows what a model read of its context while it answered.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace tidal {

/// What one decode step attended to.
struct InspectStep {
  std::vector<float> mass;  ///< [layers * heads] share of the full softmax that the positions read hold, 0 to 1
  /// [Select and Scan layers][units] positions chosen, ascending, each below the step's context; empty sets for a step
  /// whose context fits the budget.
  std::vector<std::vector<std::vector<int32_t>>> selected;
  double probability = 0;  ///< of the token that follows, 0 to 1
};

/// How exact mode's drafts fared on the same prompt.
struct InspectAcceptance {
  int64_t tried = 0;     ///< drafted tokens that were held against full attention's choice
  int64_t accepted = 0;  ///< of them
  int64_t rounds = 0;    ///< of drafting and verifying
  std::string answer;    ///< full attention's
  bool same = false;     ///< as the answer on the page
};

/// Everything on the page. Positions count from 0; step i decodes the token at position first_step + i, and what
/// follows it is the next piece, or `end` after the last one.
struct InspectReport {
  std::string model;                                       ///< its name
  std::vector<std::pair<std::string, std::string>> facts;  ///< labels and values: the plan, lengths, speed
  std::vector<std::string> pieces;                         ///< [positions] bytes of every token, any bytes
  int document = 0;                                        ///< the first positions: the document
  int question = 0;                                        ///< the next ones: the question; the rest is the answer
  int first_step = 0;                                      ///< position of the first decode step
  std::string end;                                         ///< name of the token that ended the answer; "" if none did
  std::vector<std::string> roles;                          ///< [layers] Dense, Select, Sparse, Scan, Window, Recurrent
  int heads = 0;                                           ///< query heads
  std::string unit = "set";                                ///< what has a set of its own: "set", "KV head", "head"
  int units = 1;                                           ///< sets of a layer that selects
  int sinks = 0;                                           ///< first positions that are always selected
  int recent = 0;                                          ///< last positions that are always selected
  std::vector<InspectStep> steps;                          ///< in the order of positions, without gaps
  std::optional<InspectAcceptance> exact;                  ///< where exact mode ran as well
};

/// Pieces of tokens that make whole characters.
struct TextSpan {
  std::string text;
  int pieces = 1;
  bool operator==(const TextSpan&) const = default;
};
/// Joins pieces that end inside a UTF-8 character with those that go on with it; the bytes stay what they are.
std::vector<TextSpan> whole_characters(std::span<const std::string> pieces);

/// The page: one file that needs nothing else, the same for the same report. Bytes that are not UTF-8 become U+FFFD.
/// Throws Error for a report that contradicts itself, saying what.
std::string inspect_page(const InspectReport& report);

}  // namespace tidal
