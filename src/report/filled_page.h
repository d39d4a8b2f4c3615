// Pages made of a template.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace tidal {

/// `page` with a value in the place of each mark. The marks stand in the page in this order, so that none is looked for
/// in what was put in.
std::string filled_page(std::string_view page, std::span<const std::pair<std::string_view, std::string_view>> values);

}  // namespace tidal
