#include "report/filled_page.h"

namespace tidal {

std::string filled_page(std::string_view page, std::span<const std::pair<std::string_view, std::string_view>> values) {
  std::string filled;
  for (const auto& [mark, value] : values) {
    const size_t at = page.find(mark);
    filled.append(page.substr(0, at)).append(value);
    page.remove_prefix(at + mark.size());
  }
  return filled.append(page);
}

}  // namespace tidal
