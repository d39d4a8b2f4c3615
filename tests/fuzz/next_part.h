// How the fuzzer's inputs hold a model in parts: one behind the other with this between them.
#pragma once

#include <string_view>

namespace tidal::test {

inline constexpr std::string_view kNextPart = "|next part|";

}  // namespace tidal::test
