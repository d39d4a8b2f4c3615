// How far a long run is and how long it will still take.
#pragma once

#include <cstdint>
#include <string>

#include "core/timer.h"

namespace tidal {

/// `seconds` for a person: "under 1 s", "45 s", "1 min 20 s", "2 h 5 min", "3 d 4 h". Not finite or negative: "".
std::string format_duration(double seconds);

/// "12 of 40, 1 min 20 s left": `done` of `total` units are done, `earlier` of them before this run, which has taken
/// `seconds`. Without the time before this run's first unit and when all is done.
std::string progress_text(int64_t done, int64_t total, int64_t earlier, double seconds);

/// The progress of one run. Units are work: where pieces differ in cost, count what the cost grows with (tokens), so
/// that the estimate is right.
class Progress {
 public:
  /// `earlier`: units that an earlier run has done; they tell nothing about this run's speed. The time starts now.
  explicit Progress(int64_t total, int64_t earlier = 0) : total_(total), earlier_(earlier), done_(earlier) {}

  void add(int64_t units) { done_ += units; }
  int64_t done() const { return done_; }
  std::string text() const { return progress_text(done_, total_, earlier_, timer_.seconds()); }

 private:
  int64_t total_, earlier_, done_;
  Timer timer_;
};

}  // namespace tidal
