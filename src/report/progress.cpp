#include "report/progress.h"

#include <fmt/format.h>

#include <cmath>

namespace tidal {

std::string format_duration(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) return "";
  if (seconds < 1) return "under 1 s";
  constexpr double kDay = 86400, kMost = 1e6 * kDay;  // what is longer is no estimate
  if (seconds >= kMost) return "years";
  const auto s = std::llround(seconds);
  if (s < 60) return fmt::format("{} s", s);
  if (s < 3600) return s % 60 == 0 ? fmt::format("{} min", s / 60) : fmt::format("{} min {} s", s / 60, s % 60);
  // Minutes, rounded: seconds would pretend to be exact.
  const auto minutes = (s + 30) / 60;
  if (minutes < 24 * 60) {
    return minutes % 60 == 0 ? fmt::format("{} h", minutes / 60)
                             : fmt::format("{} h {} min", minutes / 60, minutes % 60);
  }
  const auto hours = (s + 1800) / 3600;
  return hours % 24 == 0 ? fmt::format("{} d", hours / 24) : fmt::format("{} d {} h", hours / 24, hours % 24);
}

std::string progress_text(int64_t done, int64_t total, int64_t earlier, double seconds) {
  std::string text = fmt::format("{} of {}", done, total);
  const int64_t now = done - earlier, left = total - done;
  if (now <= 0 || left <= 0) return text;
  const std::string time = format_duration(seconds / static_cast<double>(now) * static_cast<double>(left));
  return time.empty() ? text : text + ", " + time + " left";
}

}  // namespace tidal
