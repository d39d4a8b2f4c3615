// stdout, where the results go, and the notes beside them on stderr.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "core/error.h"

namespace tidal {

/// stdout cannot be written: nothing that follows can help.
class OutputError : public Error {
 public:
  using Error::Error;
};

/// Writes to stdout at once. Throws OutputError when that fails, e.g. because the disk is full.
void write_out(std::string_view text);
/// Throws OutputError when anything that was written to stdout, by whomever, did not get there.
void finish_out();

/// A line on stderr that is no result and no error; dim where colour is wanted.
void note(const std::string& text);
/// A line `tidal: warning: ...` on stderr.
void warn(const std::string& text);
/// That line for a context that is longer than what the model was `trained` for, nothing for others.
void warn_of_long_context(int64_t context, int trained);

}  // namespace tidal
