// Colours of the charts: a sequential scale and a set of distinct ones, both made for colour-blind readers as well.
#pragma once

#include <array>
#include <cstddef>
#include <string>

namespace tidal {

struct Rgb {
  int red = 0, green = 0, blue = 0;  ///< 0 to 255
};

/// #rrggbb
std::string hex(Rgb colour);

/// The viridis scale of matplotlib (its lightness grows evenly) from dark for 0 to light for 1; `share` is clamped.
Rgb scale_colour(double share);

/// Relative luminance of WCAG 2.1, 0 to 1.
double luminance(Rgb colour);

/// Black or white, whichever is easier to read on `background`: the contrast is never below 4.5, which WCAG asks for.
std::string text_colour_on(Rgb background);

/// Okabe and Ito's colours, without the yellow that nobody can see on white; one of them for every `i`.
std::string series_colour(size_t i);

/// How many colours there are before they repeat.
constexpr size_t kSeriesColours = 7;

}  // namespace tidal
