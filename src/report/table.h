// Markdown tables that can also be read as they are.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace tidal {

/// A table whose columns are as wide as their widest cell. `lines`: the first one holds the names of the columns; short
/// lines are filled with empty cells. The first `words` columns are aligned left, the others, numbers, right. A "|" in
/// a cell is escaped, a line break becomes a space. "" for no lines.
std::string markdown_table(const std::vector<std::vector<std::string>>& lines, size_t words = 1);

}  // namespace tidal
