// What `tidal eval ppl` and `recall` share: places of a text, of which each is a dense prefix and steps behind it.
#pragma once

#include <string>
#include <vector>

#include "cli/eval/session.h"

namespace tidal {

struct PlaceFlags {
  std::string text;  ///< file; "" for kjv.txt beside the model
  int prefix = 4096;
  int steps = 512;
  int places = 1;
};

/// The flags of places, with the values in `flags` as defaults.
void add_place_flags(CLI::App& app, PlaceFlags& flags);

/// The text of an evaluation and its places, checked against the flags, with the session's rows opened.
class Places {
 public:
  /// `extra`: tokens behind the steps that are needed as well. Throws Error for numbers out of range and for a text
  /// that is too short.
  Places(EvalSession& session, const std::string& task, const PlaceFlags& flags, int extra);

  const std::vector<int64_t>& firsts() const { return firsts_; }
  int64_t length() const { return length_; }
  std::vector<Token> tokens(int64_t first) const { return text_.stretch(first, length_); }
  /// What every row of a place and plan begins with.
  static ResultFile::Json key(int64_t first, const EvalPlan& plan) { return {{"place", first}, {"plan", plan.name}}; }

 private:
  TextTokens text_;
  int64_t length_;
  std::vector<int64_t> firsts_;
};

}  // namespace tidal
