// Who is asked for what a pool has run out of.
#pragma once

#include <algorithm>
#include <functional>
#include <utility>
#include <vector>

namespace tidal {

/// `Wanted`: what they are asked for.
template <typename Wanted>
class Holders {
 public:
  using Give = std::function<bool(Wanted)>;

  /// `give(wanted)` lets go of something; false when it has none to give. Empty: `holder` is asked no more.
  void set(const void* holder, Give give) {
    const auto known = std::find_if(all_.begin(), all_.end(), [&](const auto& other) { return other.first == holder; });
    if (known != all_.end() && give) {
      known->second = std::move(give);
    } else if (known != all_.end()) {
      all_.erase(known);
    } else if (give) {
      all_.emplace_back(holder, std::move(give));
    }
  }

  /// Asks until enough(), or until nobody has any to give. What one lets go of another may then hold alone: each time
  /// from the first on.
  template <typename Enough>
  void ask(Wanted wanted, Enough enough) const {
    while (!enough() &&
           std::any_of(all_.begin(), all_.end(), [&](const auto& holder) { return holder.second(wanted); })) {
    }
  }

 private:
  std::vector<std::pair<const void*, Give>> all_;  // in the order in which they came
};

}  // namespace tidal
