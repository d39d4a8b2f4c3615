// The files of this folder, which CMake puts into the program.
#pragma once

#include <string_view>

namespace tidal::server {

/// With "@style@", "@script@" and, twice, "@nonce@" where these belong.
extern const std::string_view kPageHtml;
extern const std::string_view kPageStyle;
/// The scripts, one behind the other.
extern const std::string_view kPageScript;

}  // namespace tidal::server
