// Writing SVG: one picture with a title and a description, shapes and text on white. No ids, no scripts, no fonts of
// its own, so that a picture can stand alone or inside a page.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tidal::svg {

/// `text` for the inside of an element or of a quoted attribute: &, <, >, " and ' escaped; bytes that are not UTF-8 and
/// characters that XML 1.0 does not allow become U+FFFD.
std::string escape(std::string_view text);

/// Characters of UTF-8 text (bytes that begin one).
size_t length(std::string_view text);

/// About how wide `text` is drawn, pixels: the font is the reader's, so this is the width of a wide system font.
double text_width(std::string_view text, double size);

struct Stroke {
  std::string colour;
  double width = 1;
  std::string dashes;  ///< stroke-dasharray, "" for a whole line
};

enum class Anchor { Start, Middle, End };

struct TextStyle {
  double size = 12;
  Anchor anchor = Anchor::Start;
  std::string colour = "#222222";
  bool bold = false;
  bool halo = false;     ///< white around the letters, so that they can be read on lines
  bool upright = false;  ///< turned by 90 degrees, read from below
};

enum class Marker { Circle, Square, Diamond, Triangle };

using Points = std::vector<std::pair<double, double>>;

/// The elements of one picture, in the order in which they are drawn. Pixels; y grows downwards. An element with a
/// coordinate that is not finite is left out.
class Picture {
 public:
  void rectangle(double x, double y, double width, double height, const std::string& fill,
                 const std::string& stroke = "none");
  void line(double x1, double y1, double x2, double y2, const Stroke& stroke);
  /// Nothing for fewer than two points.
  void polyline(const Points& points, const Stroke& stroke);
  void marker(Marker shape, double x, double y, double radius, const std::string& fill, const std::string& stroke);
  /// `y`: of the baseline.
  void text(double x, double y, std::string_view text, const TextStyle& style);

  /// The whole document, with a newline at the end. The title is what a reader sees as a tooltip and hears.
  std::string document(double width, double height, std::string_view title, std::string_view description) const;

 private:
  std::string body_;
};

}  // namespace tidal::svg
