#include "report/colours.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace tidal {

std::string hex(Rgb colour) { return fmt::format("#{:02x}{:02x}{:02x}", colour.red, colour.green, colour.blue); }

Rgb scale_colour(double share) {
  // Ten of its 256 colours; between them it is nearly straight.
  constexpr std::array<Rgb, 10> kViridis = {{{0x44, 0x01, 0x54},
                                             {0x48, 0x28, 0x78},
                                             {0x3e, 0x49, 0x89},
                                             {0x31, 0x68, 0x8e},
                                             {0x26, 0x82, 0x8e},
                                             {0x1f, 0x9e, 0x89},
                                             {0x35, 0xb7, 0x79},
                                             {0x6e, 0xce, 0x58},
                                             {0xb5, 0xde, 0x2b},
                                             {0xfd, 0xe7, 0x25}}};
  const double place = (std::isnan(share) ? 0 : std::clamp(share, 0.0, 1.0)) * (kViridis.size() - 1);
  const auto below = std::min(static_cast<size_t>(place), kViridis.size() - 2);
  const double part = place - static_cast<double>(below);
  const auto between = [part](int from, int to) { return static_cast<int>(std::lround(from + part * (to - from))); };
  const Rgb &from = kViridis[below], &to = kViridis[below + 1];
  return {between(from.red, to.red), between(from.green, to.green), between(from.blue, to.blue)};
}

double luminance(Rgb colour) {
  const auto linear = [](int value) {
    const double share = value / 255.0;
    return share <= 0.04045 ? share / 12.92 : std::pow((share + 0.055) / 1.055, 2.4);
  };
  return 0.2126 * linear(colour.red) + 0.7152 * linear(colour.green) + 0.0722 * linear(colour.blue);
}

std::string text_colour_on(Rgb background) {
  // Contrast is (lighter + .05) / (darker + .05); the two are equal at a luminance of .179, and 4.58 there.
  const double light = luminance(background) + 0.05;
  return light / 0.05 > 1.05 / light ? "#000000" : "#ffffff";
}

std::string series_colour(size_t i) {
  constexpr std::array<const char*, kSeriesColours> kColours = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                                                "#e69f00", "#56b4e9", "#000000"};
  return kColours[i % kSeriesColours];
}

}  // namespace tidal
