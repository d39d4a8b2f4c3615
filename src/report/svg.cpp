#include "report/svg.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace tidal::svg {
namespace {

struct Character {
  uint32_t code = 0;
  size_t bytes = 0;  ///< 0: not well-formed
};

Character first_character(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  if (byte(0) < 0x80) return {byte(0), 1};
  const size_t bytes = byte(0) >= 0xF0 ? 4 : byte(0) >= 0xE0 ? 3 : 2;
  if (byte(0) < 0xC2 || byte(0) > 0xF4 || text.size() < bytes) return {};
  uint32_t code = byte(0) & (0xFFu >> (bytes + 1));
  for (size_t i = 1; i < bytes; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return {};
    code = code << 6 | (byte(i) & 0x3Fu);
  }
  // Too long a form, a surrogate, beyond Unicode.
  constexpr uint32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
  if (code < kSmallest[bytes] || (code >= 0xD800 && code <= 0xDFFF) || code > 0x10FFFF) return {};
  return {code, bytes};
}

// Production [2] Char of XML 1.0.
bool allowed_in_xml(uint32_t code) {
  if (code < 0x20) return code == '\t' || code == '\n' || code == '\r';
  return code != 0xFFFE && code != 0xFFFF;
}

// A tenth of a pixel is finer than anybody sees; -0.0 would be written as such.
std::string number(double value) {
  const double tenths = std::round(value * 10);
  std::string text = fmt::format("{:.1f}", tenths == 0 ? 0.0 : tenths / 10);
  return text.ends_with(".0") ? text.substr(0, text.size() - 2) : text;
}

template <typename... Values>
bool finite(Values... values) {
  return (std::isfinite(values) && ...);
}

std::string stroke_attributes(const Stroke& stroke) {
  std::string text = fmt::format(R"(stroke="{}" stroke-width="{}")", escape(stroke.colour), number(stroke.width));
  if (!stroke.dashes.empty()) text += fmt::format(R"( stroke-dasharray="{}")", escape(stroke.dashes));
  return text;
}

std::string point_list(const Points& points) {
  std::string text;
  for (const auto& [x, y] : points) text += fmt::format("{}{},{}", text.empty() ? "" : " ", number(x), number(y));
  return text;
}

}  // namespace

std::string escape(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const Character character = first_character(text);
    const size_t bytes = std::max<size_t>(character.bytes, 1);
    if (character.bytes == 0 || !allowed_in_xml(character.code)) {
      out += "\xEF\xBF\xBD";
    } else {
      switch (text[0]) {
        case '&': out += "&amp;"; break;
        case '<': out += "&lt;"; break;
        case '>': out += "&gt;"; break;
        case '"': out += "&quot;"; break;
        case '\'': out += "&#39;"; break;
        default: out += text.substr(0, bytes);
      }
    }
    text.remove_prefix(bytes);
  }
  return out;
}

size_t length(std::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

double text_width(std::string_view text, double size) { return 0.62 * size * static_cast<double>(length(text)); }

void Picture::rectangle(double x, double y, double width, double height, const std::string& fill,
                        const std::string& stroke) {
  if (!finite(x, y, width, height)) return;
  body_ += fmt::format(R"(<rect x="{}" y="{}" width="{}" height="{}" fill="{}" stroke="{}"/>)", number(x), number(y),
                       number(std::max(width, 0.0)), number(std::max(height, 0.0)), escape(fill), escape(stroke)) +
           "\n";
}

void Picture::line(double x1, double y1, double x2, double y2, const Stroke& stroke) {
  if (!finite(x1, y1, x2, y2)) return;
  body_ += fmt::format(R"(<line x1="{}" y1="{}" x2="{}" y2="{}" {}/>)", number(x1), number(y1), number(x2), number(y2),
                       stroke_attributes(stroke)) +
           "\n";
}

void Picture::polyline(const Points& points, const Stroke& stroke) {
  Points drawn = points;
  std::erase_if(drawn, [](const auto& point) { return !finite(point.first, point.second); });
  if (drawn.size() < 2) return;
  body_ += fmt::format(R"(<polyline points="{}" fill="none" stroke-linejoin="round" {}/>)", point_list(drawn),
                       stroke_attributes(stroke)) +
           "\n";
}

void Picture::marker(Marker shape, double x, double y, double radius, const std::string& fill,
                     const std::string& stroke) {
  if (!finite(x, y, radius)) return;
  const std::string paint = fmt::format(R"(fill="{}" stroke="{}" stroke-width="1.5")", escape(fill), escape(stroke));
  const double r = radius;
  Points corners;
  switch (shape) {
    case Marker::Circle:
      body_ += fmt::format(R"(<circle cx="{}" cy="{}" r="{}" {}/>)", number(x), number(y), number(r), paint) + "\n";
      return;
    case Marker::Square: corners = {{x - r, y - r}, {x + r, y - r}, {x + r, y + r}, {x - r, y + r}}; break;
    case Marker::Diamond: corners = {{x, y - 1.3 * r}, {x + 1.3 * r, y}, {x, y + 1.3 * r}, {x - 1.3 * r, y}}; break;
    case Marker::Triangle: corners = {{x, y - 1.2 * r}, {x + 1.2 * r, y + r}, {x - 1.2 * r, y + r}}; break;
  }
  body_ += fmt::format(R"(<polygon points="{}" {}/>)", point_list(corners), paint) + "\n";
}

void Picture::text(double x, double y, std::string_view text, const TextStyle& style) {
  if (!finite(x, y, style.size) || text.empty()) return;
  constexpr const char* kAnchors[] = {"start", "middle", "end"};
  const std::string turn =
      style.upright ? fmt::format(R"x( transform="rotate(-90 {} {})")x", number(x), number(y)) : std::string();
  body_ +=
      fmt::format(R"(<text x="{}" y="{}" font-size="{}" text-anchor="{}" fill="{}"{}{}{}>{}</text>)", number(x),
                  number(y), number(style.size), kAnchors[static_cast<int>(style.anchor)], escape(style.colour),
                  style.bold ? R"( font-weight="600")" : "",
                  style.halo ? R"( stroke="#ffffff" stroke-width="3" paint-order="stroke")" : "", turn, escape(text)) +
      "\n";
}

std::string Picture::document(double width, double height, std::string_view title, std::string_view description) const {
  const std::string w = number(width), h = number(height);
  return fmt::format(R"(<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{}" height="{}" viewBox="0 0 {} {}" )"
                     R"(font-family="system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif">)"
                     "\n<title>{}</title>\n<desc>{}</desc>\n"
                     R"(<rect x="0" y="0" width="{}" height="{}" fill="#ffffff"/>)"
                     "\n{}</svg>\n",
                     w, h, w, h, escape(title), escape(description), w, h, body_);
}

}  // namespace tidal::svg
