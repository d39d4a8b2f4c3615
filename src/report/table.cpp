#include "report/table.h"

#include <algorithm>

#include "report/svg.h"

namespace tidal {
namespace {

std::string cell_text(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '|') out += '\\';
    out += c == '\n' || c == '\r' ? ' ' : c;
  }
  return out;
}

}  // namespace

std::string markdown_table(const std::vector<std::vector<std::string>>& lines, size_t words) {
  if (lines.empty()) return "";
  size_t columns = 0;
  for (const auto& line : lines) columns = std::max(columns, line.size());
  std::vector<std::vector<std::string>> cells(lines.size(), std::vector<std::string>(columns));
  std::vector<size_t> widths(columns);
  for (size_t l = 0; l < lines.size(); ++l) {
    for (size_t i = 0; i < lines[l].size(); ++i) {
      cells[l][i] = cell_text(lines[l][i]);
      widths[i] = std::max(widths[i], svg::length(cells[l][i]));
    }
  }
  std::string text;
  for (size_t l = 0; l < cells.size(); ++l) {
    for (size_t i = 0; i < columns; ++i) {
      const std::string space(widths[i] - svg::length(cells[l][i]), ' ');
      text += i < words ? "| " + cells[l][i] + space + " " : "| " + space + cells[l][i] + " ";
    }
    text += "|\n";
    if (l > 0) continue;
    for (size_t i = 0; i < columns; ++i) text += "| " + std::string(widths[i], '-') + (i < words ? " " : ":");
    text += "|\n";
  }
  return text;
}

}  // namespace tidal
