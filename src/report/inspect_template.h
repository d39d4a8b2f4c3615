// The files inspect_page.html, .css, .js and inspect_page_controls.js, which CMake puts into the library.
#pragma once

#include <string_view>

namespace tidal {

/// With "@title@", "@style@", "@data@" and "@script@" where these belong.
extern const std::string_view kInspectHtml;
extern const std::string_view kInspectStyle;
/// One script in two files: what the data says and how it looks, and how a person changes that.
extern const std::string_view kInspectScript;

}  // namespace tidal
